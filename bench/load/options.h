/* What a run of the load generator is: its options, and the request bytes made from them.
 * Owns: the command line and the text of requests. Must not know: sockets, time. */
#ifndef FAIRGATE_BENCH_OPTIONS_H
#define FAIRGATE_BENCH_OPTIONS_H

#include "answer.h"

enum mode { CLOSED, OPEN, IDLE, ABORT };
static const char *const mode_names[] = {"closed", "open", "idle", "abort"};

static struct options {
    enum mode mode;
    int port, conns, slow, abort_after, prompt_bytes;
    double rate, warmup, duration, ramp, timeout;
    bool stream, ollama, poisson, spin, ask_usage, rotate;
    const char *model, *path, *keys, *headers;
    uint64_t random;
    int64_t pace; /* ns between two frames of a stream, 0 = as fast as possible */
} options = {.conns = 64, .duration = 5, .warmup = 1, .timeout = 30, .rate = 1000, .prompt_bytes = 1024, .model = "bench",
             .headers = "", .random = 1, .abort_after = 5};

static struct expectation expected = {.status = 200, .frames = 200, .bytes = -1, .usage = -1};

/* ---- requests: one head per key, one body; only the seed differs ---- */

static struct text {
    char *data;
    size_t length;
} *heads, body;
static int head_count;
static size_t seed_at;

static inline char *print_text(size_t *length, const char *format, ...)
{
    char *text;
    va_list arguments;
    va_start(arguments, format);
    int printed = vasprintf(&text, format, arguments);
    va_end(arguments);
    if (printed < 0)
        die("out of memory");
    *length = (size_t)printed;
    return text;
}

static inline void make_body(void)
{
    static const char word[] = "the quick brown fox jumps over the lazy dog ";
    char *prompt = malloc((size_t)options.prompt_bytes + 1);
    for (int i = 0; i < options.prompt_bytes; i++)
        prompt[i] = word[(size_t)i % (sizeof word - 1)];
    prompt[options.prompt_bytes] = 0;
    const char *stream = options.stream ? "true" : "false";
    const char *usage = options.ask_usage && !options.ollama ? ",\"stream_options\":{\"include_usage\":true}" : "";
    const char *format = options.ollama
        ? "{\"model\":\"%s\",\"stream\":%s%s,\"options\":{\"num_predict\":%" PRId64 ",\"seed\":@@@@@@@@@@},\"messages\":[{\"role\":"
          "\"user\",\"content\":\"%s\"}]}"
        : "{\"model\":\"%s\",\"stream\":%s%s,\"max_tokens\":%" PRId64 ",\"seed\":@@@@@@@@@@,\"messages\":[{\"role\":\"user\","
          "\"content\":\"%s\"}]}";
    int64_t tokens = options.stream ? expected.frames : 64;
    body.data = print_text(&body.length, format, options.model, stream, usage, tokens, prompt);
    seed_at = (size_t)(strstr(body.data, "@@@@") - body.data);
    free(prompt);
}

/* A line of the keys' file is a key, or a key, a tab and a whole header field that goes with it. */
static inline void make_head(const char *key)
{
    const char *path = options.path ? options.path : options.ollama ? "/api/chat" : "/v1/chat/completions";
    struct text head;
    size_t bearer_length;
    int key_length = key ? (int)strcspn(key, "\t") : 0;
    const char *field = key && key[key_length] ? key + key_length + 1 : "";
    char *bearer = key ? print_text(&bearer_length, "Authorization: Bearer %.*s\r\n%s%s", key_length, key, field,
                                    *field ? "\r\n" : "") : strdup("");
    head.data = print_text(&head.length,
        "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: fairgate-bench/1\r\nAccept: */*\r\n%s%s"
        "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n", path, options.port, bearer, options.headers, body.length);
    free(bearer);
    heads = realloc(heads, sizeof *heads * (size_t)(head_count + 1));
    heads[head_count++] = head;
}

static inline void make_heads(void)
{
    char line[1024];
    FILE *keys = options.keys ? fopen(options.keys, "r") : NULL;
    if (options.keys && !keys)
        die("cannot read %s", options.keys);
    while (keys && fgets(line, sizeof line, keys)) {
        line[strcspn(line, "\r\n")] = 0;
        if (*line)
            make_head(line);
    }
    if (keys)
        fclose(keys);
    if (!head_count)
        make_head(NULL);
}

/* ---- the command line ---- */

static inline bool read_flag(const char *name)
{
    struct {
        const char *name;
        bool *flag;
    } flags[] = {{"--stream", &options.stream}, {"--ollama", &options.ollama}, {"--poisson", &options.poisson},
                 {"--spin", &options.spin}, {"--ask-usage", &options.ask_usage}, {"--rotate", &options.rotate}};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (!strcmp(name, flags[i].name))
            return *flags[i].flag = true;
    return false;
}

static inline bool read_number(const char *name, const char *value)
{
    struct {
        const char *name;
        int *integer;
        double *real;
    } numbers[] = {
        {"--port", &options.port, NULL}, {"--conns", &options.conns, NULL}, {"--slow", &options.slow, NULL},
        {"--abort-after", &options.abort_after, NULL}, {"--prompt-bytes", &options.prompt_bytes, NULL},
        {"--expect-status", &expected.status, NULL}, {"--expect-usage", &expected.usage, NULL},
        {"--rate", NULL, &options.rate}, {"--warmup", NULL, &options.warmup}, {"--duration", NULL, &options.duration},
        {"--ramp", NULL, &options.ramp}, {"--timeout", NULL, &options.timeout},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(name, numbers[i].name)) {
            if (numbers[i].integer)
                *numbers[i].integer = atoi(value);
            else
                *numbers[i].real = atof(value);
            return true;
        }
    return false;
}

static inline void read_text(const char *name, const char *value)
{
    if (!strcmp(name, "--frames"))
        expected.frames = atol(value);
    else if (!strcmp(name, "--expect-bytes"))
        expected.bytes = atol(value);
    else if (!strcmp(name, "--frame-rate"))
        options.pace = atof(value) > 0 ? (int64_t)(1e9 / atof(value)) : 0;
    else if (!strcmp(name, "--seed"))
        options.random = strtoul(value, NULL, 10) | 1;
    else if (!strcmp(name, "--model"))
        options.model = value;
    else if (!strcmp(name, "--path"))
        options.path = value;
    else if (!strcmp(name, "--keys"))
        options.keys = value;
    else if (!strcmp(name, "--header")) {
        size_t length;
        options.headers = print_text(&length, "%s%s\r\n", options.headers, value);
    } else if (!strcmp(name, "--mode")) {
        for (int i = 0; i < 4; i++)
            if (!strcmp(value, mode_names[i]))
                options.mode = (enum mode)i;
    } else
        die("unknown option %s", name);
}

static inline void read_arguments(int count, char **arguments)
{
    for (int i = 1; i < count; i++) {
        if (read_flag(arguments[i]))
            continue;
        if (i + 1 == count)
            die("%s needs a value", arguments[i]);
        if (!read_number(arguments[i], arguments[i + 1]))
            read_text(arguments[i], arguments[i + 1]);
        i++;
    }
    expected.stream = options.stream;
    if (!options.port || options.conns < 1 || options.slow > options.conns)
        die("--port is needed, --conns at least 1 and at least --slow");
}

#endif
