/* One HTTP answer read incrementally and judged: status, framing, every frame there, in order, ours, and the byte count.
 * Owns the decoding and the verdict. Must not know: connections, pacing, which gateway answered. */
#ifndef FAIRGATE_BENCH_ANSWER_H
#define FAIRGATE_BENCH_ANSWER_H

#include "common.h"

/* What a sound answer must be; the same for every request of a run. */
struct expectation {
    int status; /* 0: any refusal, 4xx */
    bool stream;
    int usage;             /* is there a usage object: 0, 1, or -1 unchecked */
    int64_t frames, bytes; /* bytes after dechunking, -1 unchecked (gateways that re-encode) */
};

enum verdict { SOUND, BAD_STATUS, BAD_FRAMING, OUT_OF_ORDER, MISSING_FRAMES, FOREIGN_FRAME, NO_ENDING, NO_USAGE, WRONG_BYTES, VERDICTS };
static const char *const verdict_names[] = {"sound", "status", "framing", "order", "missing", "foreign", "ending", "usage", "bytes"};

enum part { IN_HEAD, IN_FIXED, IN_SIZE, IN_CHUNK, IN_CHUNK_END, IN_TRAILER, TO_CLOSE, COMPLETE, BROKEN };

struct times {
    int64_t sent, head, first, last; /* 0 = not yet */
};

struct answer {
    enum part part;
    int status;
    bool close, stream, ended, usage, misordered, foreign;
    int64_t remaining, bytes, next, seed;
    struct times times;
    struct buffer kept; /* the head, or a line, that one read did not complete */
};

/* Called for each content frame: the run's statistics. */
typedef void frame_hook(struct answer *a, int64_t frame_sent, int64_t now);

static inline void answer_begin(struct answer *a, bool stream, int64_t seed, int64_t now)
{
    struct buffer kept = a->kept;
    kept.length = 0;
    *a = (struct answer){.kept = kept, .stream = stream, .seed = seed, .times.sent = now};
}

/* ---- frames ---- */

static inline bool holds(const char *line, size_t length, const char *text)
{
    return memmem(line, length, text, strlen(text)) != NULL;
}

/* Lines without a mark are the role, finish, usage and final frames, or an error. */
static inline void take_plain_line(struct answer *a, const char *line, size_t length)
{
    if (length >= 6 && !memcmp(line, "[DONE]", 6))
        a->ended = true;
    if (holds(line, length, "\"completion_tokens\"") || holds(line, length, "\"eval_count\""))
        a->usage = true;
    if (holds(line, length, "\"done\":true") || holds(line, length, "\"done\": true"))
        a->ended = true;
}

static inline void take_line(struct answer *a, const char *line, size_t length, int64_t now, frame_hook *hook)
{
    if (length > 5 && !memcmp(line, "data:", 5)) {
        size_t skip = line[5] == ' ' ? 6 : 5;
        line += skip;
        length -= skip;
    } else if (!length || *line != '{')
        return; /* blank line, comment, event name */
    if (!a->times.first)
        a->times.first = now;
    const char *mark = memchr(line, '#', length);
    if (!mark || (size_t)(line + length - mark) < MARK_BYTES || mark[9] != '@' || mark[29] != '!') {
        take_plain_line(a, line, length);
        return;
    }
    if (get_digits(mark + 1, MARK_SEQUENCE) != a->next++)
        a->misordered = true;
    if (get_digits(mark + 30, MARK_SEED) != a->seed)
        a->foreign = true;
    hook(a, get_digits(mark + 10, MARK_TIME), now);
    a->times.last = now;
    if (!a->stream) /* a whole JSON answer is one line, its usage behind the mark */
        take_plain_line(a, line, length);
}

/* Cut body bytes into lines; what is left over waits in `kept`. */
static inline void take_bytes(struct answer *a, const char *data, size_t length, int64_t now, frame_hook *hook)
{
    a->bytes += (int64_t)length;
    while (length) {
        const char *newline = memchr(data, '\n', length);
        size_t line = newline ? (size_t)(newline - data) : length;
        if (!newline || a->kept.length) {
            buffer_append(&a->kept, data, line);
            if (!newline)
                return;
            take_line(a, a->kept.data, a->kept.length, now, hook);
            a->kept.length = 0;
        } else
            take_line(a, data, line, now, hook);
        data += line + 1;
        length -= line + 1;
    }
}

static inline void answer_complete(struct answer *a, int64_t now, frame_hook *hook)
{
    if (a->kept.length)
        take_line(a, a->kept.data, a->kept.length, now, hook);
    a->kept.length = 0;
    a->part = COMPLETE;
}

/* ---- framing ---- */

static inline void take_header(struct answer *a, const char *line, bool *chunked, bool *sized)
{
    if (!strncasecmp(line, "content-length:", 15)) {
        a->remaining = strtol(line + 15, NULL, 10);
        *sized = true;
    } else if (!strncasecmp(line, "transfer-encoding:", 18))
        *chunked = strncasecmp(line + 18 + strspn(line + 18, " "), "chunked", 7) == 0;
    else if (!strncasecmp(line, "connection:", 11))
        a->close = strncasecmp(line + 11 + strspn(line + 11, " "), "close", 5) == 0;
}

static inline void take_head(struct answer *a, const char *head, const char *end, int64_t now)
{
    bool chunked = false, sized = false;
    a->times.head = now;
    a->status = (int)strtol(head + 9, NULL, 10);
    for (const char *line = head; (line = memchr(line, '\n', (size_t)(end - line))) && ++line < end;)
        take_header(a, line, &chunked, &sized);
    if (strncmp(head, "HTTP/1.", 7))
        a->part = BROKEN;
    else if (a->status < 200)
        a->part = IN_HEAD; /* an interim answer: the real head follows */
    else if (chunked)
        a->part = IN_SIZE;
    else
        a->part = sized ? IN_FIXED : TO_CLOSE;
}

/* The head may be whole in this read (no copy) or collected in `kept`. Bytes used. */
static inline size_t feed_head(struct answer *a, const char *data, size_t length, int64_t now)
{
    if (!a->kept.length) {
        const char *end = memmem(data, length, "\r\n\r\n", 4);
        if (end) {
            take_head(a, data, end + 2, now);
            return (size_t)(end + 4 - data);
        }
    }
    size_t before = a->kept.length;
    buffer_append(&a->kept, data, length);
    char *end = memmem(a->kept.data, a->kept.length, "\r\n\r\n", 4);
    if (!end)
        return length;
    take_head(a, a->kept.data, end + 2, now);
    a->kept.length = 0;
    return (size_t)(end + 4 - a->kept.data) - before;
}

/* One size line, digit by digit (it may come in pieces). Extensions are skipped. */
static inline void feed_size(struct answer *a, char byte)
{
    if (byte == '\n') {
        a->part = a->remaining ? IN_CHUNK : IN_TRAILER;
        return;
    }
    int digit = byte >= '0' && byte <= '9' ? byte - '0' : byte >= 'a' && byte <= 'f' ? byte - 'a' + 10
              : byte >= 'A' && byte <= 'F' ? byte - 'A' + 10 : -1;
    if (digit >= 0)
        a->remaining = a->remaining * 16 + digit;
    else if (byte != '\r')
        a->part = BROKEN;
}

static inline void feed_chunk_end(struct answer *a, char byte)
{
    if (byte == '\n')
        a->part = IN_SIZE;
    else if (byte != '\r')
        a->part = BROKEN;
}

/* True at the empty line that ends the trailer; `remaining` counts the bytes of the present line. */
static inline bool feed_trailer(struct answer *a, char byte)
{
    if (byte == '\n' && !a->remaining)
        return true;
    if (byte != '\r')
        a->remaining = byte == '\n' ? 0 : a->remaining + 1;
    return false;
}

static inline size_t feed_body(struct answer *a, const char *data, size_t length, int64_t now, frame_hook *hook)
{
    size_t take = a->part == TO_CLOSE || (int64_t)length < a->remaining ? length : (size_t)a->remaining;
    take_bytes(a, data, take, now, hook);
    a->remaining -= a->part == TO_CLOSE ? 0 : (int64_t)take;
    if (a->part == IN_CHUNK && !a->remaining)
        a->part = IN_CHUNK_END;
    return take;
}

/* Feed received bytes; the number used is less than `length` only when the answer is complete or broken. */
static inline size_t answer_feed(struct answer *a, const char *data, size_t length, int64_t now, frame_hook *hook)
{
    size_t used = 0;
    while (a->part != COMPLETE && a->part != BROKEN) {
        if (a->part == IN_FIXED && !a->remaining)
            answer_complete(a, now, hook);
        else if (used == length)
            break;
        else if (a->part == IN_HEAD)
            used += feed_head(a, data + used, length - used, now);
        else if (a->part == IN_FIXED || a->part == IN_CHUNK || a->part == TO_CLOSE)
            used += feed_body(a, data + used, length - used, now, hook);
        else if (a->part == IN_SIZE)
            feed_size(a, data[used++]);
        else if (a->part == IN_CHUNK_END)
            feed_chunk_end(a, data[used++]);
        else if (feed_trailer(a, data[used++]))
            answer_complete(a, now, hook);
    }
    return used;
}

static inline enum verdict answer_verdict(const struct answer *a, const struct expectation *expected)
{
    if (a->part != COMPLETE)
        return BAD_FRAMING;
    bool refused = a->status >= 400 && a->status < 500;
    if (expected->status ? a->status != expected->status : !refused)
        return BAD_STATUS;
    if (a->status != 200)
        return SOUND; /* a refusal that was asked for (the flood of invalid keys) */
    if (a->misordered)
        return OUT_OF_ORDER;
    if (a->foreign)
        return FOREIGN_FRAME;
    if (a->next != (expected->stream ? expected->frames : 1))
        return MISSING_FRAMES;
    if (expected->stream && !a->ended)
        return NO_ENDING;
    if (expected->usage >= 0 && a->usage != expected->usage)
        return NO_USAGE;
    if (expected->bytes >= 0 && a->bytes != expected->bytes)
        return WRONG_BYTES;
    return SOUND;
}

#endif
