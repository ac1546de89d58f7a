"""The commands of `fairgate`: one file for each family, each with `add(commands)` that declares its arguments."""
