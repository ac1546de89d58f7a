/* The load generator: closed loop or fixed rate, JSON or streams, every answer judged (answer.h). One JSON line at the end.
 *
 * Modes:  closed  --conns connections, each sends its next request when the last answer is complete
 *         open    requests start at --rate per second (evenly, or --poisson) whatever the answers do; latency counts from
 *                 the time a request was due, so a stall is not hidden by requests never sent
 *         idle    --conns connections that sent one request and then stay open and silent
 *         abort   as closed, but the client leaves after --abort-after frames
 * `begin` and `end` lines mark the measured window for whoever reads CPU clocks meanwhile. After `end` no request starts
 * and those that run may finish (--timeout): a stream cut by the clock would not be judged.
 * Owns: connections, pacing, statistics. Must not know: which gateway answers. Loopback only, one thread. */
#include "options.h"
#include <math.h>

enum { KEPT = 256 };
/* A first frame this long behind its head, or this long a gap beyond the stream's pace, was held back: Nagle's algorithm
 * with a delayed acknowledgement shows as 40 or 200 ms. */
static const int64_t held_first = 30 * 1000000, held_gap = 100 * 1000000;
enum state { UNUSED, CONNECTING, SENDING, READING, WAITING };

struct connection {
    int fd;
    enum state state;
    bool slow, reused;
    size_t sent;
    int key;
    int64_t due;
    char seed[MARK_SEED];
    struct answer answer;
};

enum trouble { CONNECT = VERDICTS, RESET, CLOSED_EARLY, UNFINISHED, UNSENT, TROUBLES };
static const char *const trouble_names[] = {"connect", "reset", "closed", "unfinished", "unsent"};

static struct counts {
    uint64_t requests, frames, bytes, all_requests, all_sound, started, connects, firsts_held, gaps_held, troubles[TROUBLES], statuses[600];
    struct histogram latency, head, first, gap, transit, start;
} counts;

static struct {
    int64_t seed, at;
} aborts[KEPT]; /* the last ones, as the backend keeps them */
static uint64_t abort_count;

static struct connection *connections;
static int epoll_fd, running, unused_count;
static int *unused; /* a stack: the connection used last is the warmest */
static struct polls polls, window_polls;
static int64_t begin_at, end_at, next_seed = 1000000000;
static bool in_window;
static char receive_buffer[262144];

/* ---- connections ---- */

static void watch(struct connection *c, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, operation, c->fd, &event);
}

static void start_request(struct connection *c, int64_t due);

static void retire(struct connection *c)
{
    c->state = c->fd >= 0 ? WAITING : UNUSED;
    running--;
    unused[unused_count++] = (int)(c - connections);
}

static void disconnect(struct connection *c)
{
    close(c->fd);
    c->fd = -1;
    c->reused = false;
}

static void fail(struct connection *c, int trouble)
{
    counts.troubles[trouble]++;
    counts.all_requests++;
    if (c->fd >= 0)
        disconnect(c);
    int64_t now = now_ns();
    retire(c);
    if (options.mode != OPEN && now < end_at && counts.troubles[trouble] < 1000) {
        unused_count--;
        start_request(c, now);
    }
}

static void send_request(struct connection *c)
{
    struct text *head = &heads[c->key];
    memcpy(body.data + seed_at, c->seed, MARK_SEED);
    struct iovec parts[2] = {{head->data, head->length}, {body.data, body.length}};
    size_t sent = c->sent;
    int first = sent >= head->length;
    if (first)
        sent -= head->length;
    parts[first].iov_base = (char *)parts[first].iov_base + sent;
    parts[first].iov_len -= sent;
    struct msghdr message = {.msg_iov = parts + first, .msg_iovlen = (size_t)(2 - first)};
    ssize_t now_sent = sendmsg(c->fd, &message, MSG_NOSIGNAL);
    if (now_sent < 0 && errno != EAGAIN) {
        fail(c, RESET);
        return;
    }
    c->sent += now_sent > 0 ? (size_t)now_sent : 0;
    enum state before = c->state;
    c->state = c->sent == head->length + body.length ? READING : SENDING;
    if (c->state != before && (before == SENDING || c->state == SENDING))
        watch(c, EPOLL_CTL_MOD, (c->slow ? 0 : EPOLLIN) | (c->state == SENDING ? EPOLLOUT : 0));
}

static void open_connection(struct connection *c)
{
    struct sockaddr_in address = loopback(options.port);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        die("no socket: %s", strerror(errno));
    set_nodelay(c->fd);
    if (c->slow) { /* a small window, so that the gateway and not the kernel holds what is not read */
        int small = 4096;
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    }
    counts.connects++;
    c->state = CONNECTING;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
        fail(c, CONNECT);
        return;
    }
    watch(c, EPOLL_CTL_ADD, EPOLLOUT);
}

/* The caller has taken `c` off the stack of unused connections. */
static void start_request(struct connection *c, int64_t due)
{
    running++;
    uint64_t turn = options.rotate ? counts.started : (uint64_t)(c - connections); /* a client keeps its key */
    c->key = (int)(turn % (uint64_t)head_count);
    counts.started++;
    c->due = due;
    c->sent = 0;
    put_digits(c->seed, MARK_SEED, (uint64_t)next_seed);
    answer_begin(&c->answer, options.stream, next_seed, options.mode == OPEN ? due : now_ns());
    next_seed = next_seed < 2000000000 ? next_seed + 1 : 1000000000;
    if (c->fd < 0)
        open_connection(c);
    else {
        c->reused = true;
        send_request(c);
    }
}

/* ---- statistics ---- */

static void on_frame(struct answer *a, int64_t frame_sent, int64_t now)
{
    if (!in_window)
        return;
    counts.frames++;
    if (!a->stream)
        return;
    if (a->times.last) {
        histogram_add(&counts.gap, now - a->times.last);
        counts.gaps_held += now - a->times.last > options.pace + held_gap;
    }
    histogram_add(&counts.transit, now - frame_sent);
}

static void count_answer(struct connection *c, int64_t now)
{
    struct answer *a = &c->answer;
    enum verdict verdict = answer_verdict(a, &expected);
    counts.all_requests++;
    counts.troubles[verdict]++;
    counts.statuses[a->status > 0 && a->status < 600 ? a->status : 0]++;
    if (verdict == SOUND)
        counts.all_sound++;
    if (!in_window || verdict != SOUND)
        return;
    counts.requests++;
    counts.bytes += (uint64_t)a->bytes;
    histogram_add(&counts.latency, now - a->times.sent);
}

static void leave(struct connection *c, int64_t now)
{
    aborts[abort_count % KEPT].seed = c->answer.seed;
    aborts[abort_count++ % KEPT].at = now;
    counts.all_requests++;
    if (in_window)
        counts.requests++;
    disconnect(c);
}

static void finish(struct connection *c, int64_t now)
{
    count_answer(c, now);
    if (c->answer.close || c->answer.part == BROKEN || c->state == SENDING) /* SENDING: refused before we were done */
        disconnect(c);
    retire(c);
    if ((options.mode == CLOSED || options.mode == ABORT) && now < end_at) {
        unused_count--;
        start_request(c, now);
    }
}

/* ---- reading ---- */

static void on_end_of_stream(struct connection *c, int64_t now, int trouble)
{
    if (c->state == WAITING) { /* a gateway may close what idles */
        disconnect(c);
        c->state = UNUSED;
    } else if (c->answer.part == TO_CLOSE) {
        c->answer.part = COMPLETE;
        c->answer.close = true;
        finish(c, now);
    } else
        fail(c, trouble);
}

static void on_readable(struct connection *c)
{
    ssize_t got = recv(c->fd, receive_buffer, c->slow ? 1024 : sizeof receive_buffer, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    int64_t now = now_ns();
    struct times before = c->answer.times;
    if (got <= 0) {
        on_end_of_stream(c, now, got ? RESET : CLOSED_EARLY);
        return;
    }
    if (c->state == WAITING) {
        counts.troubles[BAD_FRAMING]++; /* bytes nobody asked for */
        disconnect(c);
        c->state = UNUSED;
        return;
    }
    size_t used = answer_feed(&c->answer, receive_buffer, (size_t)got, now, on_frame);
    if (in_window && !before.head && c->answer.times.head)
        histogram_add(&counts.head, now - c->answer.times.sent);
    if (in_window && !before.first && c->answer.times.first) {
        histogram_add(&counts.first, c->answer.times.first - c->answer.times.sent);
        counts.firsts_held += c->answer.times.first - c->answer.times.head > held_first;
    }
    if (used < (size_t)got)
        c->answer.part = BROKEN;
    if (c->answer.part == COMPLETE || c->answer.part == BROKEN)
        finish(c, now);
    else if (options.mode == ABORT && c->answer.next >= options.abort_after) {
        leave(c, now);
        retire(c);
        if (now < end_at) {
            unused_count--;
            start_request(c, now);
        }
    }
}

static void on_connected(struct connection *c)
{
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        fail(c, CONNECT);
        return;
    }
    histogram_add(&counts.start, now_ns() - c->due);
    watch(c, EPOLL_CTL_MOD, c->slow ? 0 : EPOLLIN);
    send_request(c);
}

static void on_event(struct connection *c, uint32_t events)
{
    if (c->fd < 0)
        return;
    if (c->state == CONNECTING)
        on_connected(c);
    else if (c->state == SENDING && events & EPOLLOUT)
        send_request(c);
    else
        on_readable(c);
}

/* ---- pacing ---- */

static int started; /* connections of the ramp that have begun */
static int64_t ramp_start, next_arrival, next_slow;

static double random_unit(void)
{
    options.random ^= options.random << 13;
    options.random ^= options.random >> 7;
    options.random ^= options.random << 17;
    return ((double)(options.random >> 11) + 0.5) / 9007199254740992.0;
}

static int64_t ramp_due(int index)
{
    return ramp_start + (int64_t)(options.ramp * 1e9 * index / options.conns);
}

static void start_due(int64_t now)
{
    if (options.mode != OPEN) {
        for (; started < options.conns && ramp_due(started) <= now && now < end_at; started++)
            start_request(&connections[unused[--unused_count]], now);
        return;
    }
    for (; next_arrival <= now && next_arrival < end_at; ) {
        if (unused_count)
            start_request(&connections[unused[--unused_count]], next_arrival);
        else
            counts.troubles[UNSENT]++; /* all connections are busy */
        double gap = options.poisson ? -log(random_unit()) : 1;
        next_arrival += (int64_t)(gap * 1e9 / options.rate);
    }
}

/* Slow readers take 1 KiB every 100 ms and are not polled. */
static void read_slowly(int64_t now)
{
    if (!options.slow || now < next_slow)
        return;
    next_slow = now + SECOND / 10;
    for (int i = 0; i < options.slow; i++)
        if (connections[i].state == READING)
            on_readable(&connections[i]);
}

static int64_t next_deadline(int64_t now)
{
    int64_t deadline = !in_window && now < begin_at ? begin_at : now < end_at ? end_at : now + SECOND / 100;
    int64_t start = NEVER;
    if (options.mode == OPEN)
        start = now < end_at ? next_arrival : NEVER;
    else if (started < options.conns)
        start = ramp_due(started);
    if (options.slow && next_slow < start)
        start = next_slow;
    return start < deadline ? start : deadline;
}

static void mark_window(int64_t now)
{
    static bool begun, ended;
    if (!begun && now >= begin_at) {
        begun = in_window = true;
        memset(&polls, 0, sizeof polls);
        puts("begin");
        fflush(stdout);
    }
    if (!ended && now >= end_at) {
        ended = true;
        in_window = false;
        window_polls = polls;
        puts("end");
        fflush(stdout);
    }
}

static void run(void)
{
    struct epoll_event events[512];
    int64_t give_up = end_at + (int64_t)(options.timeout * 1e9);
    for (int64_t now; (now = now_ns()) < give_up;) {
        mark_window(now);
        int fast_left = running - (options.slow < running ? options.slow : running);
        if (now >= end_at && (!fast_left || options.mode == IDLE))
            break;
        start_due(now);
        read_slowly(now);
        int ready = wait_events(epoll_fd, events, 512, next_deadline(now), options.spin, &polls);
        for (int i = 0; i < ready; i++)
            on_event(events[i].data.ptr, events[i].events);
    }
    for (int i = options.slow; i < options.conns; i++)
        if (connections[i].state == CONNECTING || connections[i].state == SENDING || connections[i].state == READING)
            counts.troubles[UNFINISHED]++;
}

/* ---- result ---- */

static void print_counts(FILE *out)
{
    uint64_t errors = 0;
    for (int i = 1; i < TROUBLES; i++)
        errors += counts.troubles[i];
    fprintf(out, ",\"errors\":%" PRIu64 ",\"troubles\":{", errors);
    const char *comma = "";
    for (int i = 1; i < TROUBLES; i++)
        if (counts.troubles[i]) {
            const char *name = i < VERDICTS ? verdict_names[i] : trouble_names[i - VERDICTS];
            fprintf(out, "%s\"%s\":%" PRIu64, comma, name, counts.troubles[i]);
            comma = ",";
        }
    fprintf(out, "},\"statuses\":{");
    comma = "";
    for (int i = 0; i < 600; i++)
        if (counts.statuses[i]) {
            fprintf(out, "%s\"%d\":%" PRIu64, comma, i, counts.statuses[i]);
            comma = ",";
        }
    fprintf(out, "},\"aborts\":[");
    for (uint64_t i = 0; i < abort_count && i < KEPT; i++)
        fprintf(out, "%s[%" PRId64 ",%" PRId64 "]", i ? "," : "", aborts[i].seed, aborts[i].at);
    fprintf(out, "],\"aborted\":%" PRIu64, abort_count);
}

static void print_result(void)
{
    FILE *out = stdout;
    double empty = window_polls.all ? (double)window_polls.empty / (double)window_polls.all : 0;
    fprintf(out, "{\"mode\":\"%s\",\"stream\":%s,\"spin\":%s,\"seconds\":%.3f,\"requests\":%" PRIu64 ",\"frames\":%" PRIu64
                 ",\"bytes\":%" PRIu64 ",\"rps\":%.1f,\"fps\":%.1f,\"all_requests\":%" PRIu64 ",\"all_sound\":%" PRIu64
                 ",\"connects\":%" PRIu64 ",\"firsts_held\":%" PRIu64 ",\"gaps_held\":%" PRIu64 ",\"request_bytes\":%zu"
                 ",\"polls_empty\":%.4f",
            mode_names[options.mode], options.stream ? "true" : "false", options.spin ? "true" : "false", options.duration,
            counts.requests, counts.frames, counts.bytes, (double)counts.requests / options.duration,
            (double)counts.frames / options.duration, counts.all_requests, counts.all_sound, counts.connects,
            counts.firsts_held, counts.gaps_held, heads[0].length + body.length, empty);
    print_counts(out);
    histogram_print(out, "latency_us", &counts.latency);
    histogram_print(out, "head_us", &counts.head);
    histogram_print(out, "first_us", &counts.first);
    histogram_print(out, "gap_us", &counts.gap);
    histogram_print(out, "transit_us", &counts.transit);
    histogram_print(out, "connect_us", &counts.start);
    fprintf(out, "}\n");
}

int main(int count, char **arguments)
{
    signal(SIGPIPE, SIG_IGN);
    read_arguments(count, arguments);
    allow_many_files();
    make_body();
    make_heads();
    epoll_fd = epoll_create1(0);
    connections = calloc((size_t)options.conns, sizeof *connections);
    unused = calloc((size_t)options.conns, sizeof *unused);
    if (!connections || !unused)
        die("out of memory");
    for (int i = 0; i < options.conns; i++) {
        connections[i] = (struct connection){.fd = -1, .slow = i < options.slow};
        unused[unused_count++] = options.conns - 1 - i;
    }
    ramp_start = next_arrival = now_ns();
    begin_at = ramp_start + (int64_t)((options.ramp + options.warmup) * 1e9);
    end_at = begin_at + (int64_t)(options.duration * 1e9);
    run();
    print_result();
    return 0;
}
