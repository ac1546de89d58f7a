"""End-to-end benchmark: fairgate beside the gateways people use, same backend, same load, interleaved rounds.

Run it with ``python -m bench`` (see README.md here). Nothing of the product imports this package.
"""
