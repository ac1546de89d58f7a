"""The playground in headless Chromium, served by the real gateway in front of the simulated Ollama."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from gateway.flow.playground import page as served
from tests.browser.chromium import MARKS, launched, watched

pytestmark = MARKS
LONG = "Write 5000 words about patience"


class Demo(NamedTuple):
    """What `fairgate demo --json` says when it is ready."""

    url: str
    admin_url: str
    key: str
    model: str
    embed_model: str
    pid: int


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """A gateway with one slot, so that a second request waits."""
    # A backend of our own: a developer's real Ollama on its default port is not what these tests are about.
    backend = [
        sys.executable,
        "-m",
        "gateway.simulated",
        "--listen",
        "127.0.0.1:0",
        "--load-seconds",
        "0",
        "--tokens-per-second",
        "60",
    ]
    with started(backend) as engine:
        command = [sys.executable, "-m", "gateway", "demo", "--json", "--listen", "127.0.0.1:0", "--slots", "1"]
        with started([*command, "--backend", engine["url"], "--engine", "ollama"]) as ready:
            yield Demo(**{name: ready[name] for name in Demo._fields})


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[dict[str, Any]]:
    """A process of ours; its first line of output, as JSON."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for all tests of the file."""
    with launched() as browser:
        yield browser


@pytest.fixture
def page(browser: Any, demo: Demo) -> Iterator[Any]:
    """The playground just opened."""
    with watched(browser, demo.url, "/playground") as opened:
        yield opened


def enter(page: Any, key: str) -> None:
    """Type a key and finish it with Enter."""
    page.fill("#key", key)
    page.press("#key", "Enter")


def ready(page: Any, demo: Demo, path: str) -> None:
    """A good key, the endpoint chosen."""
    enter(page, demo.key)
    page.wait_for_selector("#keystate.ok")
    choose(page, path)


def choose(page: Any, path: str) -> None:
    """Choose an endpoint by its path."""
    page.locator("nav button").filter(has=page.get_by_text(path, exact=True)).click()


def finished(page: Any) -> None:
    """Wait until no request runs."""
    page.wait_for_selector("#run:visible")


def edit(page: Any, **fields: Any) -> None:
    """Change fields of the JSON body."""
    body = json.loads(page.input_value("#body"))
    page.fill("#body", json.dumps(body | fields))


def test_served_with_its_policy_and_closed_without_a_key(page: Any, demo: Demo) -> None:
    """The strict policy is on the response; Run is off until a key is in the field."""
    assert httpx.get(f"{demo.url}/playground").headers["content-security-policy"] == served()[1].decode()
    assert page.locator("#run").is_disabled()
    page.fill("#key", "x")
    assert page.locator("#run").is_enabled()
    page.fill("#key", "")
    assert page.locator("#run").is_disabled()


def test_sse_stream_is_rendered_with_figures(page: Any, demo: Demo) -> None:
    """Text, time to first token, tokens/s and the reported token count of an SSE stream."""
    ready(page, demo, "/v1/chat/completions")
    assert demo.model in page.locator("#model option").all_text_contents()
    page.click("#run")
    finished(page)
    assert page.text_content("#s-status") == "200"
    assert "simulated" in page.text_content(".said").lower()
    for figure in ("#s-queue", "#s-ttft", "#s-rate", "#s-tokens", "#s-total"):
        assert page.text_content(figure)[0].isdigit(), figure
    assert page.locator("#notice").is_hidden()
    page.click("#tab-raw")
    assert "data: [DONE]" in page.text_content("#rawtext")
    page.click("#tab-heads")
    assert "x-request-id" in page.text_content("#headlist").lower()


def test_ndjson_stream_is_rendered(page: Any, demo: Demo) -> None:
    """The same from Ollama's format; the raw view has every line."""
    ready(page, demo, "/api/generate")
    page.click("#run")
    finished(page)
    lines = [json.loads(line) for line in page.text_content("#rawtext").splitlines()]
    assert lines[-1]["done"] is True
    assert page.text_content(".said") == "".join(line["response"] for line in lines)
    assert page.text_content("#s-tokens") == str(lines[-1]["eval_count"])


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/v1/completions", ".said"),
        ("/v1/embeddings", ".vector"),
        ("/v1/models", ".things"),
        ("/api/chat", ".said"),
        ("/api/embed", ".vector"),
        ("/api/show", "#view pre"),
        ("/api/tags", ".things"),
        ("/api/ps", "#view :is(.things, .empty)"),
        ("/api/version", "#view pre"),
        ("/api/queue", ".empty"),
        ("/api/usage", ".things"),
    ],
)
def test_every_endpoint_runs_as_it_stands(page: Any, demo: Demo, path: str, shown: str) -> None:
    """Each card's sample body works unchanged but for the model, which the picker filled in."""
    ready(page, demo, path)
    page.click("#run")
    finished(page)
    assert page.text_content("#s-status") == "200"
    assert page.locator(shown).first.is_visible()


EVENTS = [
    {"type": "response.created", "response": {"object": "response", "status": "in_progress", "error": None}},
    {"type": "response.reasoning_text.delta", "delta": "hm"},
    {"type": "response.output_text.delta", "delta": "Pati"},
    {"type": "response.output_text.delta", "delta": "ence"},
    {"type": "response.completed", "response": {"object": "response", "usage": {"output_tokens": 2}}},
]


def test_typed_events_of_responses_are_rendered(page: Any, demo: Demo) -> None:
    """OpenAI's newer interface, as an engine that has it would answer (the simulated Ollama has not)."""
    stream = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in EVENTS)
    answer = {"status": 200, "content_type": "text/event-stream", "body": stream}
    page.route("**/v1/responses", lambda route: route.fulfill(**answer))
    ready(page, demo, "/v1/responses")
    page.click("#run")
    finished(page)
    assert (page.text_content(".thought"), page.text_content(".said")) == ("hm", "Patience")
    assert page.text_content("#s-tokens") == "2"
    assert page.locator("#notice").is_hidden()
    answer["body"] = stream[: stream.rindex("event:")]
    page.click("#run")
    finished(page)
    assert "Cut off" in page.text_content("#notice")


def test_a_long_answer_is_laid_out_as_often_as_it_is_seen(page: Any, demo: Demo) -> None:
    """Asking for the height of the text at every token takes minutes for a long one. The end is in view."""
    piece = f"data: {json.dumps({'choices': [{'delta': {'content': 'word '}}]})}\n\n"
    answer = {"status": 200, "content_type": "text/event-stream", "body": piece * 2000 + "data: [DONE]\n\n"}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**answer))
    ready(page, demo, "/v1/chat/completions")
    page.evaluate(
        """() => {
          const view = document.getElementById("view");
          const own = Object.getOwnPropertyDescriptor(Element.prototype, "scrollHeight").get;
          window.asked = 0;
          Object.defineProperty(view, "scrollHeight", { get() { window.asked += 1; return own.call(this); } });
        }"""
    )
    page.click("#run")
    finished(page)
    assert page.text_content(".said") == "word " * 2000
    page.wait_for_function("() => window.asked")
    asked, below = page.evaluate("() => [window.asked, view.scrollHeight - view.scrollTop - view.clientHeight]")
    assert asked < 200
    assert abs(below) < 2


def words(command: str) -> list[str]:
    """The arguments that a shell gives to curl."""
    printed = subprocess.run(
        ["sh", "-c", 'curl() { printf "%s\\0" "$@"; }\n' + command],  # noqa: S607 - any POSIX shell is the point
        capture_output=True,
        check=True,
    )
    return printed.stdout.decode().split("\0")[:-1]


def test_curl_equals_what_run_sends(page: Any, demo: Demo) -> None:
    """Method, address, both headers and the body, byte for byte, quotes included."""
    ready(page, demo, "/api/chat")
    edit(page, messages=[{"role": "user", "content": "it's “quoted” $HOME \\ `x`\n!"}], stream=False)
    page.click("#show")
    command = words(page.text_content("#curl"))
    with page.expect_request(f"{demo.url}/api/chat") as asked:
        page.click("#run")
    finished(page)
    sent = asked.value
    assert command[: command.index("-X")] == ["-N"]
    assert command[command.index("-X") + 1 :][:2] == [sent.method, sent.url]
    given = [command[at + 1] for at, word in enumerate(command) if word == "-H"]
    headers = sent.all_headers()
    assert given == [f"Authorization: {headers['authorization']}", f"Content-Type: {headers['content-type']}"]
    assert headers["authorization"] == f"Bearer {demo.key}"
    assert command[command.index("--data-raw") + 1] == sent.post_data


def test_model_picker_and_stream_switch_edit_the_body(page: Any, demo: Demo) -> None:
    """The controls change the body that is sent, and follow it when it is edited by hand."""
    ready(page, demo, "/v1/chat/completions")
    page.select_option("#model", demo.embed_model)
    page.uncheck("#stream")
    body = json.loads(page.input_value("#body"))
    assert (body["model"], body["stream"], "stream_options" in body) == (demo.embed_model, False, False)
    edit(page, model=demo.model, stream=True)
    assert (page.input_value("#model"), page.is_checked("#stream")) == (demo.model, True)
    page.fill("#body", "{")
    assert "Not JSON" in page.text_content("#bodyhint")


def test_stop_aborts_the_stream(page: Any, demo: Demo) -> None:
    """Stop ends the fetch; what came so far stays."""
    ready(page, demo, "/api/generate")
    edit(page, prompt=LONG)
    page.click("#run")
    page.wait_for_selector(".said")
    page.click("#stop")
    finished(page)
    assert "Stopped" in page.text_content("#notice")
    assert page.text_content(".said")


def test_errors_are_shown_as_the_client_gets_them(page: Any, demo: Demo) -> None:
    """A refused key: status, sentence and body; nothing of it is stored or put into the address."""
    enter(page, "fg_not_a_key")
    page.wait_for_selector("#keystate.bad")
    choose(page, "/api/tags")
    page.click("#run")
    finished(page)
    assert page.text_content("#s-status") == "401"
    assert json.loads(page.text_content("#rawtext"))["error"] in page.text_content("#notice")
    kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert "fg_not_a_key" not in kept


def test_place_in_the_queue_while_waiting(page: Any, demo: Demo) -> None:
    """With the one slot taken, the page says where the request stands, then answers."""
    ready(page, demo, "/api/generate")
    body = {"model": demo.model, "prompt": LONG}
    taken, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        headers = {"Authorization": f"Bearer {demo.key}"}
        with httpx.stream("POST", f"{demo.url}/api/generate", json=body, headers=headers) as answer:
            chunks = answer.iter_raw()  # kept: a dropped iterator closes the answer
            next(chunks)
            taken.set()
            let_go.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert taken.wait(10)
        page.click("#run")
        page.wait_for_selector(".queue")
        assert "You are next" in page.text_content("#view")
    finally:
        let_go.set()
        holder.join()
    finished(page)
    assert page.text_content("#s-status") == "200"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280, 1920])
def test_no_sideways_scrolling(browser: Any, demo: Demo, scheme: str, width: int) -> None:
    """The page fits every width, in both colour schemes, and its text differs from its ground."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    opened = context.new_page()
    opened.goto(f"{demo.url}/playground#/v1/chat/completions")
    assert opened.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0
    ground = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(16, 20, 21)") == (scheme == "dark")
    context.close()


def test_keyboard_alone_is_enough(page: Any, demo: Demo) -> None:
    """Ctrl+Enter runs from the body, Escape stops, arrows move between the views."""
    ready(page, demo, "/api/generate")
    edit(page, prompt=LONG)
    page.press("#body", "Control+Enter")
    page.wait_for_selector(".said")
    page.keyboard.press("Escape")
    finished(page)
    page.focus("#tab-view")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-raw"
    assert page.is_visible("#raw")
