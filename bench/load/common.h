/* What the backend and the load generator share: a clock, byte buffers, sockets, waiting and latency histograms.
 * Knows nothing of HTTP. Times are CLOCK_MONOTONIC nanoseconds. Single-threaded users only. */
#ifndef FAIRGATE_BENCH_COMMON_H
#define FAIRGATE_BENCH_COMMON_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdarg.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SECOND INT64_C(1000000000)
#define NEVER INT64_MAX

__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(2);
}

static inline int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

/* ---- byte buffers ---- */

struct buffer {
    char *data;
    size_t length, capacity;
};

static inline void buffer_reserve(struct buffer *b, size_t room)
{
    if (b->capacity - b->length >= room)
        return;
    size_t capacity = b->capacity ? b->capacity : 2048;
    while (capacity - b->length < room)
        capacity *= 2;
    b->data = realloc(b->data, capacity);
    if (!b->data)
        die("out of memory");
    b->capacity = capacity;
}

static inline void buffer_append(struct buffer *b, const void *data, size_t length)
{
    buffer_reserve(b, length);
    memcpy(b->data + b->length, data, length);
    b->length += length;
}

static inline void buffer_consume(struct buffer *b, size_t length)
{
    memmove(b->data, b->data + length, b->length - length);
    b->length -= length;
}

static inline void buffer_free(struct buffer *b)
{
    free(b->data);
    *b = (struct buffer){0};
}

/* Write `value` into exactly `width` digits, zero-padded: numbers that never change the length of a frame. */
static inline void put_digits(char *at, int width, uint64_t value)
{
    for (int i = width - 1; i >= 0; i--, value /= 10)
        at[i] = (char)('0' + value % 10);
}

/* Read `width` digits; -1 if one of them is none. */
static inline int64_t get_digits(const char *at, int width)
{
    int64_t value = 0;
    for (int i = 0; i < width; i++) {
        if (at[i] < '0' || at[i] > '9')
            return -1;
        value = value * 10 + (at[i] - '0');
    }
    return value;
}

/* ---- the mark that frames carry: "#SSSSSSSS@TTTTTTTTTTTTTTTTTTT!IIIIIIIIII" = sequence, send time, request seed ---- */

enum { MARK_SEQUENCE = 8, MARK_TIME = 19, MARK_SEED = 10, MARK_BYTES = 3 + 8 + 19 + 10 };

static inline void mark_write(char *at, uint64_t sequence, int64_t time, uint64_t seed)
{
    at[0] = '#';
    put_digits(at + 1, MARK_SEQUENCE, sequence);
    at[9] = '@';
    put_digits(at + 10, MARK_TIME, (uint64_t)time);
    at[29] = '!';
    put_digits(at + 30, MARK_SEED, seed);
}

/* ---- sockets ---- */

static inline void allow_many_files(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static inline struct sockaddr_in loopback(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static inline void set_nodelay(int fd)
{
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* ---- waiting ---- */

struct polls {
    uint64_t all, empty; /* how often we looked, how often in vain: an empty share near 0 means this side is the limit */
};

/* Events now, or at the latest at `deadline`. Spinning never sleeps in the kernel, so that no send by a peer has to wake
 * this core with an interrupt; it yields the core to the other spinning process after each look in vain. */
static inline int wait_events(int epoll, struct epoll_event *events, int size, int64_t deadline, bool spin,
                              struct polls *polls)
{
    int64_t wait = deadline == NEVER ? SECOND : deadline - now_ns();
    if (wait < 0 || spin)
        wait = 0;
    if (wait > SECOND)
        wait = SECOND;
    struct timespec timeout = {.tv_sec = wait / SECOND, .tv_nsec = wait % SECOND};
    int count = epoll_pwait2(epoll, events, size, &timeout, NULL);
    polls->all++;
    if (count > 0)
        return count;
    polls->empty++;
    if (spin)
        sched_yield();
    return 0;
}

/* ---- histograms: 64 linear steps per power of two, so a value is kept to 1.6 % ---- */

enum { STEPS = 64, OCTAVES = 40 };

struct histogram {
    uint64_t count, cells[OCTAVES * STEPS];
    int64_t greatest;
    double sum;
};

static inline int histogram_cell(int64_t value)
{
    if (value < STEPS)
        return (int)value;
    int shift = 63 - __builtin_clzll((uint64_t)value) - 6;
    int cell = (shift + 1) * STEPS + (int)((value >> shift) - STEPS);
    return cell < OCTAVES * STEPS ? cell : OCTAVES * STEPS - 1;
}

static inline void histogram_add(struct histogram *h, int64_t value)
{
    if (value < 0)
        value = 0;
    h->cells[histogram_cell(value)]++;
    h->count++;
    h->sum += (double)value;
    if (value > h->greatest)
        h->greatest = value;
}

static inline double histogram_quantile(const struct histogram *h, double q)
{
    uint64_t rank = (uint64_t)(q * (double)h->count), seen = 0;
    for (int cell = 0; cell < OCTAVES * STEPS; cell++) {
        seen += h->cells[cell];
        if (seen > rank) {
            int shift = cell / STEPS - 1;
            double value = cell < STEPS ? cell + 0.5 : ((double)(STEPS + cell % STEPS) + 0.5) * (double)(INT64_C(1) << shift);
            return value < (double)h->greatest ? value : (double)h->greatest;
        }
    }
    return (double)h->greatest;
}

/* One JSON member in microseconds. */
static inline void histogram_print(FILE *out, const char *name, const struct histogram *h)
{
    double mean = h->count ? h->sum / (double)h->count : 0;
    fprintf(out, ",\"%s\":{\"n\":%" PRIu64 ",\"mean\":%.1f,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f}", name, h->count,
            mean / 1e3, histogram_quantile(h, 0.50) / 1e3, histogram_quantile(h, 0.90) / 1e3,
            histogram_quantile(h, 0.99) / 1e3, (double)h->greatest / 1e3);
}

#endif
