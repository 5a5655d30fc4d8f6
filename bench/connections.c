/*
 * A load generator of connections: how fast a broker takes them, and what it costs to hold them.
 *
 * MQTT 3.1.1, clean sessions, one thread, one epoll; started by bench/scenarios.py. mqtt.h says how it talks to that.
 *
 *   connections port=PORT count=COUNT at_once=N keep=yes|no tag=TAG
 *
 * COUNT connections are opened, N of them under way at any time: from the first SYN to the CONNACK. Then each is kept
 * until the caller has seen enough (keep=yes), or says DISCONNECT and closes at once (keep=no).
 */

#include "mqtt.h"

enum { EVENTS_MAX = 256 };

struct connection {
    int socket;
    int is_open;
    size_t answer_bytes;
    uint8_t answer[CONNACK_BYTES];
};

static struct {
    int port, count, at_once, is_kept;
    const char *tag;
} options;

static struct connection *connections;
static int poller, started, accepted;

static void begin(void) {
    struct connection *connection = &connections[started++];
    struct sockaddr_in address = broker_address(options.port);
    int on = 1;
    connection->socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (connection->socket < 0)
        fail(EXIT_REFUSED, "connection %d: %s", started, strerror(errno));
    setsockopt(connection->socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(connection->socket, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        fail(EXIT_REFUSED, "connection %d: cannot connect: %s", started, strerror(errno));
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = connection};
    epoll_ctl(poller, EPOLL_CTL_ADD, connection->socket, &event);
}

static void introduce(struct connection *connection) {
    uint8_t packet[HANDSHAKE_BYTES_MAX];
    char client_id[NAME_BYTES_MAX];
    int number = (int)(connection - connections);
    snprintf(client_id, sizeof client_id, "%.40s-c%d", options.tag, number);
    size_t bytes = put_connect(packet, client_id, 1);
    if (send(connection->socket, packet, bytes, MSG_NOSIGNAL) != (ssize_t)bytes)
        fail(EXIT_REFUSED, "connection %d: cannot connect: %s", number, strerror(errno));
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    epoll_ctl(poller, EPOLL_CTL_MOD, connection->socket, &event);
    connection->is_open = 1;
}

static void leave(struct connection *connection) {
    const uint8_t farewell[2] = {DISCONNECT, 0};
    /* A broker that has gone first is no concern of this run. */
    ssize_t written = send(connection->socket, farewell, sizeof farewell, MSG_NOSIGNAL);
    (void)written;
    close(connection->socket);
}

static void receive(struct connection *connection) {
    int number = (int)(connection - connections);
    uint8_t *to = connection->answer + connection->answer_bytes;
    if (connection->answer_bytes == CONNACK_BYTES)
        fail(EXIT_REFUSED, "connection %d: the broker closed it", number);
    ssize_t got = recv(connection->socket, to, CONNACK_BYTES - connection->answer_bytes, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0)
        fail(EXIT_REFUSED, "connection %d: the broker closed it (%s)", number, got ? strerror(errno) : "end");
    connection->answer_bytes += (size_t)got;
    if (connection->answer_bytes < CONNACK_BYTES)
        return;
    if (connection->answer[0] != CONNACK || connection->answer[3])
        fail(EXIT_REFUSED, "connection %d: CONNECT refused with code %d", number, connection->answer[3]);
    accepted++;
    if (!options.is_kept)
        leave(connection);
    if (started < options.count)
        begin();
}

static void run(void) {
    struct epoll_event events[EVENTS_MAX];
    while (started < options.count && started < options.at_once)
        begin();
    while (accepted < options.count) {
        int ready = epoll_wait(poller, events, EVENTS_MAX, (int)(handshake_ns / 1000000));
        if (ready == 0)
            fail(EXIT_REFUSED, "%d of %d connections have no answer", options.count - accepted, options.count);
        for (int index = 0; index < ready; index++) {
            struct connection *connection = events[index].data.ptr;
            if (connection->is_open)
                receive(connection);
            else
                introduce(connection);
        }
    }
}

int main(int count, char **arguments) {
    (void)count;
    options.port = (int)number_argument(arguments, "port", 1, 65535);
    options.count = (int)number_argument(arguments, "count", 1, 1000000);
    options.at_once = (int)number_argument(arguments, "at_once", 1, 10000);
    options.is_kept = choice_argument(arguments, "keep", (const char *const[]){"no", "yes", NULL});
    options.tag = argument(arguments, "tag");
    alarm(run_limit_s);
    connections = calloc((size_t)options.count, sizeof *connections);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (connections == NULL || poller < 0)
        fail(EXIT_USAGE, "not enough memory");

    puts("ready");
    fflush(stdout);
    wait_for_line();
    double used_s = cpu_s();
    uint64_t began_ns = now_ns();
    run();
    printf("{\"accepted\": %d, \"seconds\": %.6f, \"loader_cpu_s\": %.6f}\n", accepted,
           (double)(now_ns() - began_ns) / 1e9, cpu_s() - used_s);
    fflush(stdout);
    wait_for_line();
    for (int index = 0; options.is_kept && index < options.count; index++)
        leave(&connections[index]);
    return 0;
}
