/*
 * A load generator fast enough to saturate a broker: N publishers, N subscribers, each pair with a topic of its own.
 *
 * MQTT 3.1.1, QoS 0 or 1, one thread, one epoll. Started by bench/pipeline.py, which compiles it too:
 *
 *   pairs PORT PAIRS QOS COUNT SIZE RATE WINDOW TAG
 *
 * COUNT is per publisher. RATE is messages per second of all publishers together, 0 for as fast as the sockets take
 * them. WINDOW bounds what a QoS 1 publisher has unacknowledged. TAG goes into client ids and topics.
 *
 * Once every subscription is granted it prints "ready" and waits for a line on stdin, so that the caller can read the
 * broker's CPU time before and after the messages and nothing else. Then it prints one JSON object, and waits for
 * another line before it disconnects. Exit codes: 0 the run ended (loss is in the figures), 1 the broker refused or
 * closed a connection, 2 usage; a run without an end is ended by an alarm.
 *
 * A payload begins with its publisher's number, its sequence number and a time: when paced the time at which it was
 * due, so that a broker (or this program) that falls behind cannot hide it; otherwise the time at which it was written.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { CONNECT = 0x10, CONNACK = 0x20, PUBLISH = 0x30, PUBACK = 0x40, SUBSCRIBE = 0x82, SUBACK = 0x90, DISCONNECT = 0xe0 };
enum { STAMP_BYTES = 16, TOPIC_BYTES_MAX = 64, INPUT_BYTES = 1 << 16, OUTPUT_BYTES = 1 << 16, EVENTS_MAX = 64 };
enum { EXIT_REFUSED = 1, EXIT_USAGE = 2 };

#define SECOND_NS 1000000000ull
static const unsigned run_limit_s = 600;
static const uint64_t handshake_ns = 10 * SECOND_NS;
/* Messages that have not come after this long a silence are lost. */
static const uint64_t silence_ns = 5 * SECOND_NS;
/* After the last message: time for a duplicate to show up. */
static const uint64_t linger_ns = SECOND_NS / 10;

struct peer {
    int socket;
    int index;
    int is_subscriber;
    int wants_write;
    size_t input_bytes;
    size_t output_begin, output_end;
    uint8_t input[INPUT_BYTES];
    uint8_t output[OUTPUT_BYTES];
    /* A publisher's progress; packet ids are sequence numbers modulo 65535, plus one. */
    uint32_t sent, acknowledged;
    /* A subscriber's: what it has seen, and the highest sequence number so far. */
    uint8_t *seen;
    int64_t highest;
};

static struct {
    int port, pairs, qos;
    uint32_t count, size, window;
    double rate;
    const char *tag;
} options;

static struct {
    uint64_t sent, received, duplicated, reordered, acknowledged;
    uint64_t began_ns, last_ns;
    uint64_t *latencies_ns;
} totals;

static struct peer *peers;
static int poller, timer;

static void fail(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("pairs: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(code);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

static const char *name(const struct peer *peer) {
    static char text[32];
    snprintf(text, sizeof text, "%s %d", peer->is_subscriber ? "subscriber" : "publisher", peer->index);
    return text;
}

static size_t put_string(uint8_t *to, const char *text) {
    size_t length = strlen(text);
    to[0] = (uint8_t)(length >> 8);
    to[1] = (uint8_t)length;
    memcpy(to + 2, text, length);
    return 2 + length;
}

static size_t put_length(uint8_t *to, size_t length) {
    size_t used = 0;
    do {
        uint8_t digit = length % 128;
        length /= 128;
        to[used++] = digit | (length ? 0x80 : 0);
    } while (length);
    return used;
}

static void topic_of(char *to, int pair) { snprintf(to, TOPIC_BYTES_MAX, "bench/%.40s/%d", options.tag, pair); }

/* The blocking part: connect, subscribe. */

static void exchange(struct peer *peer, const uint8_t *request, size_t bytes, uint8_t *answer, size_t answer_bytes) {
    if (send(peer->socket, request, bytes, MSG_NOSIGNAL) != (ssize_t)bytes)
        fail(EXIT_REFUSED, "%s: %s", name(peer), strerror(errno));
    if (recv(peer->socket, answer, answer_bytes, MSG_WAITALL) != (ssize_t)answer_bytes)
        fail(EXIT_REFUSED, "%s: no answer to packet type %d", name(peer), request[0] >> 4);
}

static void open_peer(struct peer *peer) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port)};
    struct timeval limit = {.tv_sec = handshake_ns / SECOND_NS};
    int on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    peer->socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(peer->socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(peer->socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    setsockopt(peer->socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(peer->socket, (struct sockaddr *)&address, sizeof address))
        fail(EXIT_REFUSED, "%s: cannot connect: %s", name(peer), strerror(errno));

    uint8_t body[128], packet[160], answer[5];
    char client_id[TOPIC_BYTES_MAX];
    snprintf(client_id, sizeof client_id, "%.40s-%c%d", options.tag, peer->is_subscriber ? 's' : 'p', peer->index);
    size_t used = put_string(body, "MQTT");
    /* Protocol level 4, clean session, no keep-alive. */
    memcpy(body + used, "\x04\x02\x00\x00", 4);
    used += 4;
    used += put_string(body + used, client_id);
    packet[0] = CONNECT;
    size_t head = 1 + put_length(packet + 1, used);
    memcpy(packet + head, body, used);
    exchange(peer, packet, head + used, answer, 4);
    if (answer[0] != CONNACK || answer[3])
        fail(EXIT_REFUSED, "%s: CONNECT refused with code %d", name(peer), answer[3]);
    if (!peer->is_subscriber)
        return;

    char topic[TOPIC_BYTES_MAX];
    topic_of(topic, peer->index);
    memcpy(body, "\x00\x01", 2);
    used = 2 + put_string(body + 2, topic);
    body[used++] = (uint8_t)options.qos;
    packet[0] = SUBSCRIBE;
    head = 1 + put_length(packet + 1, used);
    memcpy(packet + head, body, used);
    exchange(peer, packet, head + used, answer, 5);
    if (answer[0] != SUBACK || answer[4] != options.qos)
        fail(EXIT_REFUSED, "%s: SUBSCRIBE at QoS %d answered with %d", name(peer), options.qos, answer[4]);
}

/* The measured part: nothing blocks. */

static void watch(struct peer *peer, int wants_write) {
    if (peer->wants_write == wants_write)
        return;
    struct epoll_event event = {.events = EPOLLIN | (wants_write ? EPOLLOUT : 0u), .data.ptr = peer};
    epoll_ctl(poller, EPOLL_CTL_MOD, peer->socket, &event);
    peer->wants_write = wants_write;
}

static void flush(struct peer *peer) {
    while (peer->output_begin < peer->output_end) {
        ssize_t written =
            send(peer->socket, peer->output + peer->output_begin, peer->output_end - peer->output_begin, MSG_NOSIGNAL);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0 && errno == EAGAIN)
            return;
        if (written < 0)
            fail(EXIT_REFUSED, "%s: %s", name(peer), strerror(errno));
        peer->output_begin += (size_t)written;
    }
    peer->output_begin = peer->output_end = 0;
}

static uint64_t due_ns(const struct peer *publisher, uint32_t sequence) {
    if (options.rate <= 0)
        return 0;
    double turn = (double)sequence * options.pairs + publisher->index;
    return totals.began_ns + (uint64_t)(turn * 1e9 / options.rate);
}

static size_t publish_bytes(void) { return 16 + TOPIC_BYTES_MAX + options.size; }

static void append_publish(struct peer *publisher, uint64_t stamp_ns) {
    char topic[TOPIC_BYTES_MAX];
    topic_of(topic, publisher->index);
    uint8_t *to = publisher->output + publisher->output_end;
    size_t body = 2 + strlen(topic) + (options.qos ? 2 : 0) + options.size;
    uint32_t number = (uint32_t)publisher->index, sequence = publisher->sent;
    *to++ = (uint8_t)(PUBLISH | options.qos << 1);
    to += put_length(to, body);
    to += put_string(to, topic);
    if (options.qos) {
        uint16_t packet_id = (uint16_t)(sequence % 65535 + 1);
        *to++ = (uint8_t)(packet_id >> 8);
        *to++ = (uint8_t)packet_id;
    }
    memcpy(to, &number, 4);
    memcpy(to + 4, &sequence, 4);
    memcpy(to + 8, &stamp_ns, 8);
    memset(to + STAMP_BYTES, 'x', options.size - STAMP_BYTES);
    publisher->output_end = (size_t)(to + options.size - publisher->output);
    publisher->sent++;
    totals.sent++;
}

/* Write what this publisher may send now. */
static void publish(struct peer *publisher) {
    for (;;) {
        uint64_t now = now_ns();
        int blocked = publisher->output_begin != 0;
        while (!blocked && publisher->sent < options.count && publisher->output_end + publish_bytes() <= OUTPUT_BYTES) {
            uint64_t due = due_ns(publisher, publisher->sent);
            if (due > now || (options.qos && publisher->sent - publisher->acknowledged >= options.window))
                blocked = 1;
            else
                append_publish(publisher, due ? due : now);
        }
        flush(publisher);
        if (publisher->output_end) {
            watch(publisher, 1);
            return;
        }
        if (blocked || publisher->sent == options.count) {
            watch(publisher, 0);
            return;
        }
    }
}

static void take_message(struct peer *subscriber, uint8_t first, const uint8_t *body, size_t bytes, uint64_t now) {
    size_t at = 2 + ((size_t)body[0] << 8 | body[1]);
    if (first & 0x06) {
        uint8_t *ack = subscriber->output + subscriber->output_end;
        ack[0] = PUBACK;
        ack[1] = 2;
        memcpy(ack + 2, body + at, 2);
        subscriber->output_end += 4;
        at += 2;
    }
    uint32_t number, sequence;
    uint64_t stamp_ns;
    if (bytes < at + STAMP_BYTES)
        fail(EXIT_REFUSED, "%s: a message without a stamp", name(subscriber));
    memcpy(&number, body + at, 4);
    memcpy(&sequence, body + at + 4, 4);
    memcpy(&stamp_ns, body + at + 8, 8);
    if (number != (uint32_t)subscriber->index || sequence >= options.count)
        fail(EXIT_REFUSED, "%s: message %u of publisher %u is not for it", name(subscriber), sequence, number);
    totals.last_ns = now;
    if (subscriber->seen[sequence]) {
        totals.duplicated++;
        return;
    }
    subscriber->seen[sequence] = 1;
    totals.reordered += (int64_t)sequence < subscriber->highest;
    if ((int64_t)sequence > subscriber->highest)
        subscriber->highest = sequence;
    totals.latencies_ns[totals.received++] = now > stamp_ns ? now - stamp_ns : 0;
}

static void take_packet(struct peer *peer, uint8_t first, const uint8_t *body, size_t bytes, uint64_t now) {
    if (peer->is_subscriber && (first & 0xf0) == PUBLISH) {
        take_message(peer, first, body, bytes, now);
    } else if (!peer->is_subscriber && first == PUBACK) {
        peer->acknowledged++;
        totals.acknowledged++;
        totals.last_ns = now;
    } else {
        fail(EXIT_REFUSED, "%s: unexpected packet 0x%02x", name(peer), first);
    }
}

/* Length of the packet at `data` and of its header; 0 when it is not all there yet. */
static size_t packet_bytes(const uint8_t *data, size_t available, size_t *head) {
    size_t length = 0, at = 1;
    for (int shift = 0; shift < 28; shift += 7, at++) {
        if (at >= available)
            return 0;
        length |= (size_t)(data[at] & 0x7f) << shift;
        if (!(data[at] & 0x80)) {
            *head = at + 1;
            return at + 1 + length <= available ? at + 1 + length : 0;
        }
    }
    fail(EXIT_REFUSED, "the broker sent a malformed length");
    return 0;
}

static void receive(struct peer *peer) {
    /* Acknowledgements need room: at most one of 4 bytes for each PUBLISH, which is longer. */
    if (peer->is_subscriber && OUTPUT_BYTES - peer->output_end < INPUT_BYTES / 4) {
        flush(peer);
        if (peer->output_end) {
            watch(peer, 1);
            return;
        }
    }
    ssize_t got = recv(peer->socket, peer->input + peer->input_bytes, INPUT_BYTES - peer->input_bytes, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0)
        fail(EXIT_REFUSED, "%s: the broker closed the connection (%s)", name(peer), got ? strerror(errno) : "end");
    uint64_t now = now_ns();
    size_t at = 0, length, head = 0;
    peer->input_bytes += (size_t)got;
    while ((length = packet_bytes(peer->input + at, peer->input_bytes - at, &head))) {
        take_packet(peer, peer->input[at], peer->input + at + head, length - head, now);
        at += length;
    }
    peer->input_bytes -= at;
    memmove(peer->input, peer->input + at, peer->input_bytes);
    if (peer->is_subscriber) {
        flush(peer);
        watch(peer, peer->output_end != 0);
    }
}

static void set_timer(uint64_t at_ns) {
    struct itimerspec setting = {.it_value = {.tv_sec = (time_t)(at_ns / SECOND_NS), .tv_nsec = (long)(at_ns % SECOND_NS)}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &setting, NULL);
}

/* Publish what is due and wake up for what is due next. */
static void pace(void) {
    uint64_t next = UINT64_MAX;
    for (int index = 0; index < options.pairs; index++) {
        struct peer *publisher = &peers[index];
        publish(publisher);
        if (publisher->sent < options.count) {
            uint64_t due = due_ns(publisher, publisher->sent);
            next = due < next ? due : next;
        }
    }
    if (next != UINT64_MAX)
        set_timer(next);
}

static int is_complete(uint64_t expected) {
    return totals.received == expected && totals.sent == expected && (!options.qos || totals.acknowledged == expected);
}

static void run(void) {
    struct epoll_event events[EVENTS_MAX];
    uint64_t expected = (uint64_t)options.count * (uint64_t)options.pairs;
    totals.began_ns = totals.last_ns = now_ns();
    pace();
    for (;;) {
        int timeout_ms = is_complete(expected) ? (int)(linger_ns / 1000000) : 500;
        int ready = epoll_wait(poller, events, EVENTS_MAX, timeout_ms);
        if (ready == 0 && is_complete(expected))
            return;
        /* Everything sent and silence since: what is missing is lost. When paced the silence may be the pace's own. */
        uint64_t now = now_ns();
        if (now > totals.last_ns + silence_ns && now > due_ns(&peers[0], peers[0].sent) + silence_ns)
            return;
        int due = 0;
        for (int index = 0; index < ready; index++) {
            struct peer *peer = events[index].data.ptr;
            if (peer == NULL) {
                uint64_t expirations;
                due = read(timer, &expirations, sizeof expirations) > 0;
                continue;
            }
            if (events[index].events & ~(unsigned)EPOLLOUT)
                receive(peer);
            if (!peer->is_subscriber)
                publish(peer);
            else if (events[index].events & EPOLLOUT) {
                flush(peer);
                watch(peer, peer->output_end != 0);
            }
        }
        if (due)
            pace();
    }
}

static int ascending(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

static double percentile_us(double share) {
    if (!totals.received)
        return 0;
    uint64_t rank = (uint64_t)(share * (double)(totals.received - 1) + 0.5);
    return (double)totals.latencies_ns[rank] / 1e3;
}

static double cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void report(double used_s) {
    double seconds = (double)(totals.last_ns - totals.began_ns) / 1e9;
    qsort(totals.latencies_ns, totals.received, sizeof *totals.latencies_ns, ascending);
    printf("{\"sent\": %llu, \"acknowledged\": %llu, \"received\": %llu, \"lost\": %llu, \"duplicated\": %llu, "
           "\"reordered\": %llu, \"seconds\": %.6f, \"loader_cpu_s\": %.6f, \"p50_us\": %.1f, \"p90_us\": %.1f, "
           "\"p99_us\": %.1f, \"max_us\": %.1f}\n",
           (unsigned long long)totals.sent, (unsigned long long)totals.acknowledged,
           (unsigned long long)totals.received, (unsigned long long)(totals.sent - totals.received),
           (unsigned long long)totals.duplicated, (unsigned long long)totals.reordered, seconds, used_s,
           percentile_us(0.5), percentile_us(0.9), percentile_us(0.99), percentile_us(1));
    fflush(stdout);
}

static void parse(char **arguments) {
    options.port = atoi(arguments[1]);
    options.pairs = atoi(arguments[2]);
    options.qos = atoi(arguments[3]);
    options.count = (uint32_t)strtoul(arguments[4], NULL, 10);
    options.size = (uint32_t)strtoul(arguments[5], NULL, 10);
    options.rate = atof(arguments[6]);
    options.window = (uint32_t)strtoul(arguments[7], NULL, 10);
    options.tag = arguments[8];
    if (options.pairs < 1 || options.qos < 0 || options.qos > 1 || options.count < 1 || options.size < STAMP_BYTES ||
        publish_bytes() > OUTPUT_BYTES / 2 || options.window < 1 || options.window > 65535)
        fail(EXIT_USAGE, "an argument is out of range");
}

int main(int count, char **arguments) {
    if (count != 9)
        fail(EXIT_USAGE, "usage: %s PORT PAIRS QOS COUNT SIZE RATE WINDOW TAG", arguments[0]);
    parse(arguments);
    alarm(run_limit_s);
    peers = calloc((size_t)options.pairs * 2, sizeof *peers);
    totals.latencies_ns = calloc((size_t)options.pairs * options.count, sizeof *totals.latencies_ns);
    if (peers == NULL || totals.latencies_ns == NULL)
        fail(EXIT_USAGE, "not enough memory");
    poller = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event);
    /* Publishers first in the array, subscribers after them. */
    for (int index = 0; index < options.pairs * 2; index++) {
        struct peer *peer = &peers[index];
        peer->is_subscriber = index >= options.pairs;
        peer->index = index % options.pairs;
        peer->highest = -1;
        if (peer->is_subscriber && (peer->seen = calloc(options.count, 1)) == NULL)
            fail(EXIT_USAGE, "not enough memory");
        open_peer(peer);
        fcntl(peer->socket, F_SETFL, O_NONBLOCK);
        event.data.ptr = peer;
        epoll_ctl(poller, EPOLL_CTL_ADD, peer->socket, &event);
    }
    puts("ready");
    fflush(stdout);
    char line[16];
    if (fgets(line, sizeof line, stdin) == NULL)
        return EXIT_USAGE;
    double used_s = cpu_s();
    run();
    report(cpu_s() - used_s);
    if (fgets(line, sizeof line, stdin) == NULL)
        return EXIT_USAGE;
    for (int index = 0; index < options.pairs * 2; index++) {
        uint8_t farewell[2] = {DISCONNECT, 0};
        if (send(peers[index].socket, farewell, 2, MSG_NOSIGNAL) < 0)
            continue;
    }
    return 0;
}
