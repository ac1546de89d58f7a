/* A deterministic model server for benchmarks: speaks the OpenAI and Ollama shapes, computes nothing, forgets nothing.
 *
 * Streams carry one frame per chunk and per send, each with a sequence number, a send time and the request's seed (see
 * `mark_write`), so that the client can prove order, completeness and that the answer is its own, and measure transit.
 * Frames and rate come from the command line or GET /bench/set, and per request from max_tokens / num_predict,
 * bench_rate or a model name ending in -rRATE. Faults (--break) exist to prove that the client notices them.
 * Owns: the wire of a model server. Must not know: any gateway. Loopback only. */
#include "ask.h"
#include "shapes.h"

enum fault { SOUND, MISSING, SHORT, SWAPPED, TRUNCATED, FOREIGN, UNENDED, LONGER, STATUS, HELD };
static const char *const fault_names[] = {"none", "missing", "short", "swapped", "truncated", "foreign", "unended",
                                          "longer", "status", "held"};

static struct settings {
    int64_t frames, frame_bytes, answer_bytes, fault_every;
    double rate; /* frames/s of one stream, 0 = as fast as possible */
    enum fault fault;
    bool spin;
} settings = {.frames = 200, .frame_bytes = 250, .answer_bytes = 600, .fault_every = 1};

static struct stats {
    uint64_t requests, streams, frames, aborted, blocked, accepted;
    struct histogram late; /* how long after its due time a paced frame left */
} stats;

/* The client that left while its stream ran: which, and when we saw it. */
static struct {
    int64_t seed, at;
} aborts[256];

struct stream {
    enum dialect dialect;
    bool usage;
    int64_t frames, next, seed, due, interval;
    enum fault fault;
};

struct connection {
    int fd;
    struct buffer in, out;
    struct stream stream;
    bool streaming, close, blocked;
    int32_t place; /* in `heap` (paced) or `fast` (as fast as possible) */
};

static int epoll_fd;
static struct polls polls;

/* ---- writing ---- */

static void watch(struct connection *c, bool writable)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (writable ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
    c->blocked = writable;
}

/* Send now; what the socket does not take waits for EPOLLOUT. Errors show up as a hang-up in the next poll. */
static void put(struct connection *c, const char *data, size_t length)
{
    if (!c->out.length) {
        ssize_t sent = send(c->fd, data, length, MSG_NOSIGNAL);
        if (sent == (ssize_t)length)
            return;
        if (sent > 0) {
            data += sent;
            length -= (size_t)sent;
        }
    }
    buffer_append(&c->out, data, length);
    if (!c->blocked) {
        stats.blocked++;
        watch(c, true);
    }
}

static void put_json(struct connection *c, const char *status, const char *body, size_t length)
{
    char text[16384];
    size_t head = (size_t)snprintf(text, 1024, json_head_format, status, length);
    if (head + length > sizeof text)
        die("an answer of %zu bytes does not fit", length);
    memcpy(text + head, body, length);
    put(c, text, head + length);
}

/* One frame as one chunk behind `used` bytes of `text`; the new length. */
static size_t add_chunk(char *text, size_t used, const char *frame, size_t length)
{
    used += (size_t)sprintf(text + used, "%zx\r\n", length);
    memcpy(text + used, frame, length);
    memcpy(text + used + length, "\r\n", 2);
    return used + length + 2;
}

static void put_frame(struct connection *c, int64_t sequence, int64_t seed, size_t extra)
{
    struct frame *f = &content[c->stream.dialect];
    char text[sizeof f->data + 64], frame[sizeof f->data + 1];
    memcpy(frame, f->data, f->length);
    mark_write(frame + f->mark, (uint64_t)sequence, now_ns(), (uint64_t)seed);
    if (extra) { /* the fault "longer": one byte more of padding, still valid JSON */
        memmove(frame + f->mark + MARK_BYTES + 1, frame + f->mark + MARK_BYTES, f->length - f->mark - MARK_BYTES);
        frame[f->mark + MARK_BYTES] = 'x';
    }
    put(c, text, add_chunk(text, 0, frame, f->length + extra));
    stats.frames++;
}

/* ---- the two sets of running streams: a heap by due time, and a list of those without pace ---- */

static struct connection **heap, **fast;
static int32_t heap_count, fast_count, capacity;

static void heap_place(struct connection *c, int32_t at)
{
    heap[at] = c;
    c->place = at;
}

static void heap_sift(int32_t at)
{
    struct connection *c = heap[at];
    for (; at && heap[(at - 1) / 2]->stream.due > c->stream.due; at = (at - 1) / 2)
        heap_place(heap[(at - 1) / 2], at);
    for (int32_t child; (child = 2 * at + 1) < heap_count; at = child) {
        if (child + 1 < heap_count && heap[child + 1]->stream.due < heap[child]->stream.due)
            child++;
        if (heap[child]->stream.due >= c->stream.due)
            break;
        heap_place(heap[child], at);
    }
    heap_place(c, at);
}

static void stream_join(struct connection *c)
{
    if (heap_count + fast_count == capacity) {
        capacity = capacity ? 2 * capacity : 1024;
        heap = realloc(heap, sizeof *heap * (size_t)capacity);
        fast = realloc(fast, sizeof *fast * (size_t)capacity);
        if (!heap || !fast)
            die("out of memory");
    }
    c->streaming = true;
    if (c->stream.interval) {
        heap[heap_count] = c;
        c->place = heap_count++;
        heap_sift(c->place);
    } else {
        fast[fast_count] = c;
        c->place = fast_count++;
    }
}

static void stream_leave(struct connection *c)
{
    c->streaming = false;
    if (c->stream.interval) {
        struct connection *last = heap[--heap_count];
        if (last != c) {
            heap_place(last, c->place);
            heap_sift(last->place);
        }
    } else {
        struct connection *last = fast[--fast_count];
        fast[c->place] = last;
        last->place = c->place;
    }
}

/* ---- streams ---- */

static void stream_begin(struct connection *c, struct ask *ask, enum dialect dialect)
{
    double rate = ask->rate >= 0 ? ask->rate : settings.rate;
    stats.streams++;
    c->stream = (struct stream){
        .dialect = dialect,
        .usage = ask->include_usage,
        .frames = ask->frames >= 0 ? ask->frames : settings.frames,
        .seed = ask->seed >= 0 ? ask->seed : 0,
        .interval = rate > 0 ? (int64_t)(1e9 / rate) : 0,
        .fault = stats.streams % (uint64_t)settings.fault_every ? SOUND : settings.fault,
    };
    c->stream.due = now_ns() + c->stream.interval;
    char text[2048];
    if (dialect == OPENAI && c->stream.fault == HELD) /* the first frame waits for the next one */
        put(c, stream_head, sizeof stream_head - 1);
    else if (dialect == OPENAI) {
        memcpy(text, stream_head, sizeof stream_head - 1);
        put(c, text, add_chunk(text, sizeof stream_head - 1, role_frame, sizeof role_frame - 1));
    } else
        put(c, ndjson_head, sizeof ndjson_head - 1);
    stream_join(c);
}

static void put_ending(struct connection *c)
{
    char text[4096], frame[1024];
    struct stream *s = &c->stream;
    size_t used = 0;
    if (s->dialect == OLLAMA && s->fault != UNENDED)
        used = add_chunk(text, used, frame, (size_t)snprintf(frame, sizeof frame, ollama_done_format, s->frames));
    if (s->dialect == OPENAI) {
        used = add_chunk(text, used, finish_frame, sizeof finish_frame - 1);
        if (s->usage)
            used = add_chunk(text, used, frame,
                             (size_t)snprintf(frame, sizeof frame, usage_format, s->frames, s->frames + 256));
        if (s->fault != UNENDED)
            used = add_chunk(text, used, done_frame, sizeof done_frame - 1);
    }
    used += (size_t)sprintf(text + used, "0\r\n\r\n");
    put(c, text, used);
}

/* Send the next frame, or what ends the stream. False: the stream is over. */
static bool stream_step(struct connection *c)
{
    struct stream *s = &c->stream;
    if (s->next >= s->frames - (s->fault == SHORT)) {
        put_ending(c);
        stream_leave(c);
        return false;
    }
    int64_t sequence = s->next++, middle = s->frames / 2;
    if (s->fault == HELD && s->dialect == OPENAI && !sequence) {
        char text[1024];
        put(c, text, add_chunk(text, 0, role_frame, sizeof role_frame - 1));
    }
    if (s->fault == MISSING && sequence == middle)
        return true;
    if (s->fault == SWAPPED && (sequence == middle || sequence == middle + 1))
        sequence = sequence == middle ? middle + 1 : middle;
    if (s->fault == TRUNCATED && sequence == middle) {
        stream_leave(c);
        c->close = true;
        return false;
    }
    bool here = sequence == middle;
    put_frame(c, sequence, s->fault == FOREIGN && here ? s->seed + 1 : s->seed, s->fault == LONGER && here);
    return true;
}

/* ---- requests ---- */

static void put_answer(struct connection *c, struct ask *ask, enum dialect dialect)
{
    static uint64_t count;
    enum fault fault = ++count % (uint64_t)settings.fault_every ? SOUND : settings.fault;
    if (fault == STATUS) {
        static const char error[] = "{\"error\":{\"message\":\"broken on purpose\",\"type\":\"api_error\"}}";
        put_json(c, "500 Internal Server Error", error, sizeof error - 1);
        return;
    }
    struct frame *f = &answer[dialect];
    char text[sizeof f->data + 256];
    size_t head = (size_t)snprintf(text, 256, json_head_format, "200 OK", f->length);
    memcpy(text + head, f->data, f->length);
    int64_t seed = (ask->seed >= 0 ? ask->seed : 0) + (fault == FOREIGN);
    mark_write(text + head + f->mark, fault == MISSING ? 1 : 0, now_ns(), (uint64_t)seed);
    put(c, text, head + (fault == TRUNCATED ? f->length / 2 : f->length));
    c->close |= fault == TRUNCATED;
}

static double parameter(const char *query, const char *name, double otherwise)
{
    const char *at = strstr(query, name);
    return at ? strtod(at + strlen(name), NULL) : otherwise;
}

static enum fault fault_of(const char *name, enum fault otherwise)
{
    for (size_t i = 0; i < sizeof fault_names / sizeof *fault_names; i++)
        if (!strncmp(name, fault_names[i], strlen(fault_names[i])))
            return (enum fault)i;
    return otherwise;
}

static void put_stats(struct connection *c, bool reset)
{
    char *text;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    fprintf(out, "{\"requests\":%" PRIu64 ",\"streams\":%" PRIu64 ",\"frames\":%" PRIu64 ",\"aborted\":%" PRIu64
                 ",\"blocked\":%" PRIu64 ",\"accepted\":%" PRIu64 ",\"running\":%d,\"polls\":%" PRIu64 ",\"polls_empty\":%" PRIu64,
            stats.requests, stats.streams, stats.frames, stats.aborted, stats.blocked, stats.accepted, heap_count + fast_count,
            polls.all, polls.empty);
    histogram_print(out, "late_us", &stats.late);
    fprintf(out, ",\"aborts\":[");
    uint64_t shown = stats.aborted < 256 ? stats.aborted : 256;
    for (uint64_t i = stats.aborted - shown; i < stats.aborted; i++)
        fprintf(out, "%s[%" PRId64 ",%" PRId64 "]", i == stats.aborted - shown ? "" : ",", aborts[i % 256].seed, aborts[i % 256].at);
    fprintf(out, "]}");
    fclose(out);
    put_json(c, "200 OK", text, length);
    free(text);
    if (reset) {
        memset(&stats, 0, sizeof stats);
        memset(&polls, 0, sizeof polls);
    }
}

static void answer_control(struct connection *c, struct ask *ask)
{
    const char *query = ask->query, *fault = strstr(query, "break=");
    char text[256];
    if (!strcmp(ask->path, "/bench/stats")) {
        put_stats(c, strstr(query, "reset") != NULL);
        return;
    }
    if (!strcmp(ask->path, "/bench/set")) {
        settings.frames = (int64_t)parameter(query, "frames=", (double)settings.frames);
        settings.rate = parameter(query, "rate=", settings.rate);
        settings.spin = parameter(query, "spin=", settings.spin) > 0;
        settings.fault_every = (int64_t)parameter(query, "every=", (double)settings.fault_every);
        settings.fault = fault ? fault_of(fault + 6, settings.fault) : settings.fault;
    }
    int64_t frames = (int64_t)parameter(query, "frames=", (double)settings.frames);
    enum dialect dialect = strstr(query, "api=ollama") ? OLLAMA : OPENAI;
    size_t bytes = expected_bytes(dialect, parameter(query, "stream=", 0) > 0, frames, parameter(query, "usage=", 0) > 0);
    int length = snprintf(text, sizeof text, "{\"bytes\":%zu,\"frames\":%" PRId64 ",\"rate\":%g,\"break\":\"%s\"}", bytes,
                          settings.frames, settings.rate, fault_names[settings.fault]);
    put_json(c, "200 OK", text, (size_t)length);
}

static void answer_request(struct connection *c, struct ask *ask)
{
    stats.requests++;
    c->close = ask->close;
    bool openai = ask->post && !strcmp(ask->path, "/v1/chat/completions");
    bool ollama = ask->post && !strcmp(ask->path, "/api/chat");
    enum dialect dialect = ollama ? OLLAMA : OPENAI;
    if (openai || ollama) {
        if (ask->stream == 1 || (ollama && ask->stream == -1))
            stream_begin(c, ask, dialect);
        else
            put_answer(c, ask, dialect);
        return;
    }
    if (!strncmp(ask->path, "/bench/", 7)) {
        stats.requests--;
        answer_control(c, ask);
        return;
    }
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        if (!strcmp(ask->path, fixed[i].path)) {
            put_json(c, "200 OK", fixed[i].body, strlen(fixed[i].body));
            return;
        }
    static const char unknown[] = "{\"error\":{\"message\":\"no such route\"}}";
    put_json(c, "404 Not Found", unknown, sizeof unknown - 1);
}

/* ---- connections ---- */

static void connection_end(struct connection *c)
{
    if (c->streaming) {
        aborts[stats.aborted % 256].seed = c->stream.seed;
        aborts[stats.aborted++ % 256].at = now_ns();
        stream_leave(c);
    }
    close(c->fd);
    buffer_free(&c->in);
    buffer_free(&c->out);
    free(c);
}

/* Answer what is complete in the buffer. False: the connection was ended. */
static bool serve(struct connection *c)
{
    struct ask ask;
    while (!c->streaming && c->in.length) {
        buffer_reserve(&c->in, 1); /* strtol must meet an end even at the last byte */
        c->in.data[c->in.length] = 0;
        if (!read_ask(&c->in, &ask))
            return true;
        if (ask.broken) {
            connection_end(c);
            return false;
        }
        answer_request(c, &ask);
        buffer_consume(&c->in, ask.total_length);
        if (c->close && !c->streaming && !c->out.length) {
            connection_end(c);
            return false;
        }
    }
    return true;
}

static void on_readable(struct connection *c)
{
    buffer_reserve(&c->in, 2048);
    ssize_t got = recv(c->fd, c->in.data + c->in.length, c->in.capacity - c->in.length - 1, 0);
    if (got > 0) {
        c->in.length += (size_t)got;
        serve(c);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR))
        connection_end(c);
}

static bool on_writable(struct connection *c)
{
    ssize_t sent = send(c->fd, c->out.data, c->out.length, MSG_NOSIGNAL);
    if (sent > 0)
        buffer_consume(&c->out, (size_t)sent);
    if (c->out.length)
        return true;
    watch(c, false);
    if (c->close && !c->streaming) {
        connection_end(c);
        return false;
    }
    return true;
}

static void accept_all(int listener)
{
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        struct connection *c = calloc(1, sizeof *c);
        if (!c)
            die("out of memory");
        set_nodelay(fd);
        c->fd = fd;
        stats.accepted++;
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

/* A stream just ended: serve what the client sent meanwhile, or close. */
static void after_stream(struct connection *c)
{
    if (c->close && !c->out.length)
        connection_end(c);
    else if (!c->close)
        serve(c);
}

static void run_streams(void)
{
    int64_t now = now_ns();
    for (int turn = 0; turn < 64 && heap_count && heap[0]->stream.due <= now; turn++) {
        struct connection *c = heap[0];
        histogram_add(&stats.late, now - c->stream.due);
        if (c->out.length > 262144 || stream_step(c)) {
            c->stream.due += c->stream.interval;
            heap_sift(0);
        } else
            after_stream(c);
    }
    for (int32_t i = fast_count - 1; i >= 0; i--) {
        struct connection *c = fast[i];
        if (!c->blocked && !stream_step(c))
            after_stream(c);
    }
}

static int64_t next_deadline(void)
{
    for (int32_t i = 0; i < fast_count; i++)
        if (!fast[i]->blocked)
            return 0;
    return heap_count ? heap[0]->stream.due : NEVER;
}

static int listen_on(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in address = loopback(port);
    socklen_t size = sizeof address;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, size) || listen(fd, 8192))
        die("cannot listen on port %d: %s", port, strerror(errno));
    getsockname(fd, (struct sockaddr *)&address, &size);
    printf("{\"port\":%d,\"pid\":%d}\n", ntohs(address.sin_port), getpid());
    fflush(stdout);
    return fd;
}

static int read_arguments(int count, char **arguments)
{
    int port = 0;
    for (int i = 1; i < count; i++) {
        const char *name = arguments[i], *value = i + 1 < count ? arguments[i + 1] : "";
        if (!strcmp(name, "--spin")) {
            settings.spin = true;
            continue;
        }
        if (!strcmp(name, "--port"))
            port = atoi(value);
        else if (!strcmp(name, "--frames"))
            settings.frames = atol(value);
        else if (!strcmp(name, "--rate"))
            settings.rate = atof(value);
        else if (!strcmp(name, "--frame-bytes"))
            settings.frame_bytes = atol(value);
        else if (!strcmp(name, "--answer-bytes"))
            settings.answer_bytes = atol(value);
        else if (!strcmp(name, "--break"))
            settings.fault = fault_of(value, SOUND);
        else if (!strcmp(name, "--break-every"))
            settings.fault_every = atol(value);
        else
            die("unknown option %s", name);
        i++;
    }
    return port;
}

int main(int count, char **arguments)
{
    signal(SIGPIPE, SIG_IGN);
    allow_many_files();
    int listener = listen_on(read_arguments(count, arguments));
    render_frames((size_t)settings.frame_bytes, (size_t)settings.answer_bytes);
    epoll_fd = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[512];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = wait_events(epoll_fd, events, 512, next_deadline(), settings.spin, &polls);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c)
                accept_all(listener);
            else if (!(events[i].events & EPOLLOUT) || on_writable(c))
                if (events[i].events & ~(uint32_t)EPOLLOUT)
                    on_readable(c);
        }
        run_streams();
    }
}
