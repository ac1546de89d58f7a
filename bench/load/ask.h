/* One request as the backend sees it: head, body and the few body fields that steer the answer.
 * A bench parser, lenient by intent: strictness is the gateway's duty, and any well-formed request must pass here. */
#ifndef FAIRGATE_BENCH_ASK_H
#define FAIRGATE_BENCH_ASK_H

#include "common.h"

struct ask {
    const char *path, *query; /* both NUL-terminated copies inside `target` */
    char target[512];
    bool post, close, broken; /* broken: not HTTP/1, as a gateway probing for gRPC sends */
    const char *body;
    size_t body_length, total_length;
    int stream; /* -1 not said */
    bool include_usage;
    int64_t frames, seed; /* -1 not said */
    double rate;          /* frames/s, -1 not said */
};

/* The value of header `name` (lower case, with colon) inside a head, or NULL. */
static inline const char *header_value(const char *head, const char *end, const char *name)
{
    size_t length = strlen(name);
    for (const char *line = memchr(head, '\n', (size_t)(end - head)); line; line = memchr(line, '\n', (size_t)(end - line))) {
        if (++line + length > end)
            return NULL;
        if (strncasecmp(line, name, length))
            continue;
        for (line += length; *line == ' '; line++)
            ;
        return line;
    }
    return NULL;
}

/* Join the chunks of a body in place. Its decoded length; *end behind the last chunk; -1: more bytes needed. */
static inline ssize_t join_chunks(char *body, char *limit, char **end)
{
    char *to = body, *from = body;
    for (;;) { /* a first pass that moves nothing: the body may still be incomplete */
        char *line = memchr(from, '\n', (size_t)(limit - from));
        if (!line)
            return -1;
        size_t size = strtoul(from, NULL, 16);
        if ((size_t)(limit - line) < size + 3)
            return -1;
        from = line + 1 + size + 2;
        if (!size)
            break;
    }
    *end = from;
    for (from = body;;) {
        char *line = memchr(from, '\n', (size_t)(limit - from));
        size_t size = strtoul(from, NULL, 16);
        if (!size)
            return to - body;
        memmove(to, line + 1, size);
        to += size;
        from = line + 1 + size + 2;
    }
}

static inline const char *string_end(const char *at, const char *limit)
{
    for (const char *quote = at;; quote++) {
        quote = memchr(quote, '"', (size_t)(limit - quote));
        if (!quote)
            return limit;
        const char *back = quote;
        while (back > at && back[-1] == '\\')
            back--;
        if ((quote - back) % 2 == 0)
            return quote;
    }
}

static inline const char *skip_space(const char *at, const char *limit)
{
    while (at < limit && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r'))
        at++;
    return at;
}

static inline bool key_is(const char *key, size_t length, const char *name)
{
    return strlen(name) == length && !memcmp(key, name, length);
}

/* Take one member at depth 1, or at depth 2 below stream_options or options. The body ends in a NUL. */
static inline void take_member(struct ask *ask, const char *key, size_t length, const char *value, const char *limit)
{
    if (key_is(key, length, "stream"))
        ask->stream = *value == 't';
    else if (key_is(key, length, "include_usage"))
        ask->include_usage = *value == 't';
    else if (key_is(key, length, "max_tokens") || key_is(key, length, "max_completion_tokens") ||
             key_is(key, length, "num_predict"))
        ask->frames = strtol(value, NULL, 10);
    else if (key_is(key, length, "seed"))
        ask->seed = strtol(value, NULL, 10);
    else if (key_is(key, length, "bench_rate"))
        ask->rate = strtod(value, NULL);
    else if (key_is(key, length, "model") && *value == '"') {
        const char *end = string_end(value + 1, limit);
        const char *mark = memmem(value, (size_t)(end - value), "-r", 2);
        if (mark && mark[2] >= '0' && mark[2] <= '9')
            ask->rate = strtod(mark + 2, NULL);
    }
}

static inline void read_body(struct ask *ask)
{
    const char *at = ask->body, *limit = at + ask->body_length;
    int depth = 0;
    bool inside_options = false;
    for (; at < limit; at++) {
        if (*at == '{' || *at == '[')
            depth++;
        else if (*at == '}' || *at == ']')
            depth--;
        if (*at != '"')
            continue;
        const char *key = at + 1, *end = string_end(key, limit);
        at = end;
        const char *colon = end < limit ? skip_space(end + 1, limit) : limit;
        if (colon >= limit || *colon != ':')
            continue;
        size_t length = (size_t)(end - key);
        const char *value = skip_space(colon + 1, limit);
        if (depth == 1)
            inside_options = key_is(key, length, "stream_options") || key_is(key, length, "options");
        if (depth == 1 || (depth == 2 && inside_options))
            take_member(ask, key, length, value, limit);
        at = colon;
    }
}

static inline void read_target(struct ask *ask, const char *line)
{
    const char *start = strchr(line, ' ') + 1;
    size_t length = strcspn(start, " \r\n");
    if (length >= sizeof ask->target)
        length = sizeof ask->target - 1;
    memcpy(ask->target, start, length);
    ask->target[length] = 0;
    char *mark = strchr(ask->target, '?');
    ask->query = mark ? mark + 1 : "";
    if (mark)
        *mark = 0;
    ask->path = ask->target;
}

/* Read one request from the start of the buffer. False: bytes are missing. */
static inline bool read_ask(struct buffer *in, struct ask *ask)
{
    char *head_end = in->length > 3 ? memmem(in->data, in->length, "\r\n\r\n", 4) : NULL;
    if (!head_end)
        return false;
    char *body = head_end + 4, *limit = in->data + in->length, *end = body;
    *ask = (struct ask){.stream = -1, .frames = -1, .seed = -1, .rate = -1, .body = body};
    char *line_end = memchr(in->data, '\r', (size_t)(body - in->data));
    if (!memmem(in->data, (size_t)(line_end - in->data), " HTTP/1.", 8)) {
        ask->broken = true;
        return true;
    }
    const char *length = header_value(in->data, body, "content-length:");
    const char *coding = header_value(in->data, body, "transfer-encoding:");
    if (coding && !strncasecmp(coding, "chunked", 7)) {
        ssize_t joined = join_chunks(body, limit, &end);
        if (joined < 0)
            return false;
        ask->body_length = (size_t)joined;
    } else if (length) {
        ask->body_length = strtoul(length, NULL, 10);
        end = body + ask->body_length;
        if (end > limit) {
            buffer_reserve(in, (size_t)(end - limit) + 1);
            return false;
        }
    }
    ask->total_length = (size_t)(end - in->data);
    const char *connection = header_value(in->data, body, "connection:");
    ask->close = connection && !strncasecmp(connection, "close", 5);
    ask->post = in->data[0] == 'P';
    read_target(ask, in->data);
    read_body(ask);
    return true;
}

#endif
