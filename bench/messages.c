/*
 * A load generator of messages, fast enough to saturate a broker: publishers with a topic each, and subscribers.
 *
 * MQTT 3.1.1, QoS 0, 1 and 2, one thread, one epoll; started by bench/pipeline.py and bench/scenarios.py. mqtt.h says
 * how it talks to them.
 *
 *   messages port=PORT publishers=P subscribers=S filter=own|all|shared stage=flow|join|fill|drain
 *            qos=QOS count=COUNT size=BYTES rate=RATE window=WINDOW tag=TAG subscriber_port=PORT
 *
 * COUNT is per publisher. RATE is messages per second of all publishers together, 0 for as fast as the sockets take
 * them. WINDOW bounds what a publisher has unacknowledged at QoS 1 and 2. TAG goes into client ids and topics.
 * Subscribers are at a port of their own, as of another node of a cluster, unless that is 0.
 *
 * Subscriber i subscribes to the topic of publisher i modulo P (own), to all topics by a wildcard (all), or to all
 * topics as a member of one shared subscription (shared), where each message is due once in the group.
 *
 * A run has everything at once (flow), or is one of three that follow each other: a persistent session subscribes and
 * leaves (join), messages are published for it (fill), it comes back and takes them, from its CONNECT on (drain).
 *
 * A payload begins with its publisher's number, its sequence number and a time: when paced the time at which it was
 * due, so that a broker (or this program) that falls behind cannot hide it; otherwise the time at which it was written.
 */

#include "mqtt.h"
#include <sys/timerfd.h>

enum { STAMP_BYTES = 16, INPUT_BYTES = 1 << 16, OUTPUT_BYTES = 1 << 17, EVENTS_MAX = 64 };
/* What publishes must leave free: a whole input of packets may ask for as many bytes of acknowledgements. */
enum { PUBLISHES_BYTES_MAX = OUTPUT_BYTES - INPUT_BYTES };
enum filter { OWN, ALL, SHARED };
enum stage { FLOW, JOIN, FILL, DRAIN };
static const char *const filter_names[] = {"own", "all", "shared", NULL};
static const char *const stage_names[] = {"flow", "join", "fill", "drain", NULL};

/* Messages that have not come after this long a silence are lost. */
static const uint64_t silence_ns = 5 * SECOND_NS;
/* After the last message: time for a duplicate to show up. */
static const uint64_t linger_ns = SECOND_NS / 10;

struct peer {
    int socket;
    int index;
    int is_subscriber;
    uint32_t watched;
    size_t input_bytes;
    size_t output_begin, output_end;
    uint8_t input[INPUT_BYTES];
    uint8_t output[OUTPUT_BYTES];
    /* A publisher's progress; packet ids are sequence numbers modulo 65535, plus one. */
    uint32_t sent, acknowledged;
    /* A subscriber's: whether a message has been seen (by it, or by its group), and of each publisher the highest
       sequence number so far. A subscriber of one topic keeps one publisher's alone. */
    uint8_t *seen;
    int64_t *highest;
};

static struct {
    int port, subscriber_port, publishers, subscribers, qos;
    enum filter filter;
    enum stage stage;
    uint32_t count, size, window;
    double rate;
    const char *tag;
} options;

/* What a complete run has sent and received. */
static uint64_t to_send, to_receive;

static struct {
    uint64_t sent, received, duplicated, reordered, acknowledged, resumed;
    uint64_t began_ns, last_ns;
    uint64_t *latencies_ns;
} totals;

static struct peer *peers;
static int peers_count, poller, timer;

static const char *name(const struct peer *peer) {
    static char text[32];
    snprintf(text, sizeof text, "%s %d", peer->is_subscriber ? "subscriber" : "publisher", peer->index);
    return text;
}

static void *zeros(size_t count, size_t bytes) {
    void *found = calloc(count ? count : 1, bytes);
    if (found == NULL)
        fail(EXIT_USAGE, "not enough memory");
    return found;
}

static void topic_of(char *to, int publisher) {
    snprintf(to, NAME_BYTES_MAX, "bench/%.40s/%d", options.tag, publisher);
}

static void filter_of(char *to, int subscriber) {
    if (options.filter == OWN)
        topic_of(to, subscriber % options.publishers);
    else
        snprintf(to, NAME_BYTES_MAX, "%sbench/%.40s/+", options.filter == SHARED ? "$share/g/" : "", options.tag);
}

/* How many publishers a subscriber hears. */
static int heard(void) { return options.filter == OWN ? 1 : options.publishers; }

/* The blocking part: connect, subscribe. */

static void exchange(struct peer *peer, const uint8_t *request, size_t bytes, uint8_t *answer, size_t answer_bytes) {
    if (send(peer->socket, request, bytes, MSG_NOSIGNAL) != (ssize_t)bytes)
        fail(EXIT_REFUSED, "%s: %s", name(peer), strerror(errno));
    if (recv(peer->socket, answer, answer_bytes, MSG_WAITALL) != (ssize_t)answer_bytes)
        fail(EXIT_REFUSED, "%s: no answer to packet type %d", name(peer), request[0] >> 4);
}

static void subscribe(struct peer *peer) {
    uint8_t packet[HANDSHAKE_BYTES_MAX], answer[SUBACK_BYTES];
    char filter[NAME_BYTES_MAX];
    filter_of(filter, peer->index);
    size_t used = 1;
    packet[0] = SUBSCRIBE;
    used += put_length(packet + used, 5 + strlen(filter));
    packet[used++] = 0;
    packet[used++] = 1;
    used += put_string(packet + used, filter);
    packet[used++] = (uint8_t)options.qos;
    exchange(peer, packet, used, answer, sizeof answer);
    if (answer[0] != SUBACK || answer[4] != options.qos)
        fail(EXIT_REFUSED, "%s: SUBSCRIBE at QoS %d answered with %d", name(peer), options.qos, answer[4]);
}

static void open_peer(struct peer *peer) {
    int is_elsewhere = peer->is_subscriber && options.subscriber_port;
    struct sockaddr_in address = broker_address(is_elsewhere ? options.subscriber_port : options.port);
    struct timeval limit = {.tv_sec = handshake_ns / SECOND_NS};
    int on = 1;
    peer->socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(peer->socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(peer->socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    setsockopt(peer->socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(peer->socket, (struct sockaddr *)&address, sizeof address))
        fail(EXIT_REFUSED, "%s: cannot connect: %s", name(peer), strerror(errno));

    uint8_t packet[HANDSHAKE_BYTES_MAX], answer[CONNACK_BYTES];
    char client_id[NAME_BYTES_MAX];
    int is_clean = !peer->is_subscriber || options.stage == FLOW;
    snprintf(client_id, sizeof client_id, "%.40s-%c%d", options.tag, peer->is_subscriber ? 's' : 'p', peer->index);
    exchange(peer, packet, put_connect(packet, client_id, is_clean), answer, sizeof answer);
    if (answer[0] != CONNACK || answer[3])
        fail(EXIT_REFUSED, "%s: CONNECT refused with code %d", name(peer), answer[3]);
    totals.resumed += answer[2] & 1;
    if (peer->is_subscriber && options.stage != DRAIN)
        subscribe(peer);
    fcntl(peer->socket, F_SETFL, O_NONBLOCK);
    peer->watched = EPOLLIN;
    struct epoll_event event = {.events = peer->watched, .data.ptr = peer};
    epoll_ctl(poller, EPOLL_CTL_ADD, peer->socket, &event);
}

/* The measured part: nothing blocks. */

static size_t output_room(const struct peer *peer) { return OUTPUT_BYTES - peer->output_end; }

/* Wake up for what can be done: writing when something waits, reading when the answers would find room. */
static void watch(struct peer *peer) {
    uint32_t wanted = (output_room(peer) >= INPUT_BYTES ? EPOLLIN : 0u) | (peer->output_end ? EPOLLOUT : 0u);
    if (peer->watched == wanted)
        return;
    struct epoll_event event = {.events = wanted, .data.ptr = peer};
    epoll_ctl(poller, EPOLL_CTL_MOD, peer->socket, &event);
    peer->watched = wanted;
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
    double turn = (double)sequence * options.publishers + publisher->index;
    return totals.began_ns + (uint64_t)(turn * 1e9 / options.rate);
}

static size_t publish_bytes(void) { return 16 + NAME_BYTES_MAX + options.size; }

static void append_publish(struct peer *publisher, uint64_t stamp_ns) {
    char topic[NAME_BYTES_MAX];
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
        int partial = publisher->output_begin != 0;
        int blocked = partial;
        while (!blocked && publisher->sent < options.count &&
               publisher->output_end + publish_bytes() <= PUBLISHES_BYTES_MAX) {
            uint64_t due = due_ns(publisher, publisher->sent);
            if (due > now || (options.qos && publisher->sent - publisher->acknowledged >= options.window))
                blocked = 1;
            else
                append_publish(publisher, due ? due : now);
        }
        flush(publisher);
        if (partial && !publisher->output_end)
            /* The rest of an earlier message has left, and nothing else would wake this publisher for the next. */
            continue;
        if (publisher->output_end || blocked || publisher->sent == options.count) {
            watch(publisher);
            return;
        }
    }
}

/* Answer a packet with another that carries its packet id. */
static void append_ack(struct peer *peer, uint8_t first, const uint8_t *packet_id) {
    uint8_t *to = peer->output + peer->output_end;
    to[0] = first;
    to[1] = 2;
    memcpy(to + 2, packet_id, 2);
    peer->output_end += ACK_BYTES;
}

static void count_message(struct peer *subscriber, uint32_t number, uint32_t sequence, uint64_t stamp_ns,
                          uint64_t now) {
    int is_due = options.filter == OWN ? number == (uint32_t)(subscriber->index % options.publishers)
                                       : number < (uint32_t)options.publishers;
    if (!is_due || sequence >= options.count)
        fail(EXIT_REFUSED, "%s: message %u of publisher %u is not for it", name(subscriber), sequence, number);
    uint32_t row = options.filter == OWN ? 0 : number;
    uint8_t *seen = &subscriber->seen[(size_t)row * options.count + sequence];
    totals.last_ns = now;
    if (*seen) {
        totals.duplicated++;
        return;
    }
    *seen = 1;
    totals.reordered += (int64_t)sequence < subscriber->highest[row];
    if ((int64_t)sequence > subscriber->highest[row])
        subscriber->highest[row] = sequence;
    totals.latencies_ns[totals.received++] = now > stamp_ns ? now - stamp_ns : 0;
}

static void take_message(struct peer *subscriber, uint8_t first, const uint8_t *body, size_t bytes, uint64_t now) {
    size_t at = bytes < 2 ? bytes : 2 + ((size_t)body[0] << 8 | body[1]);
    int qos = first >> 1 & 3;
    uint32_t number, sequence;
    uint64_t stamp_ns;
    if (bytes < at + (qos ? 2 : 0) + STAMP_BYTES)
        fail(EXIT_REFUSED, "%s: a message without a stamp", name(subscriber));
    if (qos) {
        append_ack(subscriber, qos == 1 ? PUBACK : PUBREC, body + at);
        at += 2;
    }
    memcpy(&number, body + at, 4);
    memcpy(&sequence, body + at + 4, 4);
    memcpy(&stamp_ns, body + at + 8, 8);
    count_message(subscriber, number, sequence, stamp_ns, now);
}

static void take_packet(struct peer *peer, uint8_t first, const uint8_t *body, size_t bytes, uint64_t now) {
    if (peer->is_subscriber && (first & 0xf0) == PUBLISH) {
        take_message(peer, first, body, bytes, now);
    } else if (peer->is_subscriber && first == PUBREL && bytes == 2) {
        append_ack(peer, PUBCOMP, body);
    } else if (!peer->is_subscriber && first == PUBREC && bytes == 2 && options.qos == 2) {
        append_ack(peer, PUBREL, body);
    } else if (!peer->is_subscriber && first == (options.qos == 2 ? PUBCOMP : PUBACK)) {
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
}

static void receive(struct peer *peer) {
    if (output_room(peer) < INPUT_BYTES)
        return;
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
}

static void set_timer(uint64_t at_ns) {
    struct itimerspec setting = {
        .it_value = {.tv_sec = (time_t)(at_ns / SECOND_NS), .tv_nsec = (long)(at_ns % SECOND_NS)}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &setting, NULL);
}

/* Publish what is due and wake up for what is due next. */
static void pace(void) {
    uint64_t next = UINT64_MAX;
    for (int index = 0; index < peers_count && !peers[index].is_subscriber; index++) {
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

static int is_complete(void) {
    return totals.received == to_receive && totals.sent == to_send && (!options.qos || totals.acknowledged == to_send);
}

/* Everything sent and silence since: what is missing is lost. When paced the silence may be the pace's own. */
static int is_over(uint64_t now) {
    uint64_t due = to_send ? due_ns(&peers[0], peers[0].sent) : 0;
    return now > totals.last_ns + silence_ns && now > due + silence_ns;
}

static void run(void) {
    struct epoll_event events[EVENTS_MAX];
    pace();
    for (;;) {
        int timeout_ms = is_complete() ? (int)(linger_ns / 1000000) : 500;
        int ready = epoll_wait(poller, events, EVENTS_MAX, timeout_ms);
        if ((ready == 0 && is_complete()) || is_over(now_ns()))
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
            if (!peer->is_subscriber) {
                publish(peer);
            } else {
                flush(peer);
                watch(peer);
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

static void report(double used_s) {
    double seconds = (double)(totals.last_ns - totals.began_ns) / 1e9;
    qsort(totals.latencies_ns, totals.received, sizeof *totals.latencies_ns, ascending);
    printf("{\"sent\": %llu, \"unsent\": %llu, \"acknowledged\": %llu, \"received\": %llu, \"lost\": %llu, "
           "\"duplicated\": %llu, \"reordered\": %llu, \"resumed\": %llu, \"seconds\": %.6f, \"loader_cpu_s\": %.6f, "
           "\"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f}\n",
           (unsigned long long)totals.sent, (unsigned long long)(to_send - totals.sent),
           (unsigned long long)totals.acknowledged, (unsigned long long)totals.received,
           (unsigned long long)(to_receive - totals.received), (unsigned long long)totals.duplicated,
           (unsigned long long)totals.reordered, (unsigned long long)totals.resumed, seconds, used_s,
           percentile_us(0.5), percentile_us(0.9), percentile_us(0.99), percentile_us(1));
    fflush(stdout);
}

static void parse(char **arguments) {
    options.port = (int)number_argument(arguments, "port", 1, 65535);
    options.subscriber_port = (int)number_argument(arguments, "subscriber_port", 0, 65535);
    options.publishers = (int)number_argument(arguments, "publishers", 1, 10000);
    options.subscribers = (int)number_argument(arguments, "subscribers", 0, 10000);
    options.filter = (enum filter)choice_argument(arguments, "filter", filter_names);
    options.stage = (enum stage)choice_argument(arguments, "stage", stage_names);
    options.qos = (int)number_argument(arguments, "qos", 0, 2);
    options.count = (uint32_t)number_argument(arguments, "count", 1, 1000000000);
    options.size = (uint32_t)number_argument(arguments, "size", STAMP_BYTES, INPUT_BYTES / 2 - 16 - NAME_BYTES_MAX);
    options.window = (uint32_t)number_argument(arguments, "window", 1, 65535);
    options.rate = atof(argument(arguments, "rate"));
    options.tag = argument(arguments, "tag");
}

/* Publishers first in the array, subscribers after them; each stage has those that take part in it. */
static void prepare(void) {
    int publishers = options.stage == FLOW || options.stage == FILL ? options.publishers : 0;
    int subscribers = options.stage == FILL ? 0 : options.subscribers;
    size_t row = options.count, rows = (size_t)heard();
    uint8_t *seen = zeros(options.filter == SHARED ? rows : 0, row);
    to_send = (uint64_t)publishers * options.count;
    if (subscribers && options.stage != JOIN)
        to_receive = (uint64_t)options.count * rows * (options.filter == SHARED ? 1 : (uint64_t)subscribers);
    totals.latencies_ns = zeros(to_receive, sizeof *totals.latencies_ns);
    peers_count = publishers + subscribers;
    peers = zeros((size_t)peers_count, sizeof *peers);
    for (int index = 0; index < peers_count; index++) {
        struct peer *peer = &peers[index];
        peer->is_subscriber = index >= publishers;
        peer->index = peer->is_subscriber ? index - publishers : index;
        if (!peer->is_subscriber)
            continue;
        peer->seen = options.filter == SHARED ? seen : zeros(rows, row);
        peer->highest = zeros(rows, sizeof *peer->highest);
        memset(peer->highest, -1, rows * sizeof *peer->highest);
    }
}

static void open_all(void) {
    for (int index = 0; index < peers_count; index++)
        open_peer(&peers[index]);
}

int main(int count, char **arguments) {
    (void)count;
    parse(arguments);
    alarm(run_limit_s);
    prepare();
    poller = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event);
    if (options.stage != DRAIN)
        open_all();
    puts("ready");
    fflush(stdout);
    wait_for_line();

    double used_s = cpu_s();
    totals.began_ns = totals.last_ns = now_ns();
    if (options.stage == DRAIN)
        open_all();
    /* Sessions that nobody remembers have nothing to take: no waiting for it. */
    if (options.stage != DRAIN || totals.resumed)
        run();
    report(cpu_s() - used_s);
    wait_for_line();
    for (int index = 0; index < peers_count; index++) {
        const uint8_t farewell[2] = {DISCONNECT, 0};
        if (send(peers[index].socket, farewell, sizeof farewell, MSG_NOSIGNAL) < 0)
            continue;
    }
    return 0;
}
