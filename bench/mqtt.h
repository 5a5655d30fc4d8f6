/*
 * What both load generators share: the few MQTT 3.1.1 packets that they write and read, their arguments, their clock,
 * and the conversation with whoever started them.
 *
 * Arguments are name=value. A load generator prints "ready", waits for a line on stdin, does its work, prints one JSON
 * object, waits for another line, says goodbye to the broker and ends. So the caller can read the broker's CPU time and
 * memory before and after the work, and nothing else. Exit codes: 0 the run ended (loss is in the figures), 1 the
 * broker refused or closed a connection, 2 usage; a run without an end is ended by an alarm.
 */

#ifndef MQTT_H
#define MQTT_H

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
#include <time.h>
#include <unistd.h>

/* The first byte of a packet; PUBLISH without its flags. */
enum {
    CONNECT = 0x10,
    CONNACK = 0x20,
    PUBLISH = 0x30,
    PUBACK = 0x40,
    PUBREC = 0x50,
    PUBREL = 0x62,
    PUBCOMP = 0x70,
    SUBSCRIBE = 0x82,
    SUBACK = 0x90,
    DISCONNECT = 0xe0
};
enum { CONNACK_BYTES = 4, SUBACK_BYTES = 5, ACK_BYTES = 4 };
enum { NAME_BYTES_MAX = 80, HANDSHAKE_BYTES_MAX = 160 };
enum { EXIT_REFUSED = 1, EXIT_USAGE = 2 };

#define SECOND_NS 1000000000ull
static const unsigned run_limit_s = 600;
/* Longer than any run, so that nobody has to ping. Not 0, which some brokers refuse. */
static const unsigned keep_alive_s = 3600;
static const uint64_t handshake_ns = 10 * SECOND_NS;

__attribute__((format(printf, 2, 3), noreturn)) static void fail(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
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

/* CPU seconds of this process so far. */
static double cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* The value of an argument name=value; the run ends without one. */
static const char *argument(char **arguments, const char *name) {
    size_t length = strlen(name);
    for (char **each = arguments + 1; *each; each++)
        if (!strncmp(*each, name, length) && (*each)[length] == '=')
            return *each + length + 1;
    fail(EXIT_USAGE, "%s: there is no argument %s=...", arguments[0], name);
}

static long number_argument(char **arguments, const char *name, long least, long most) {
    char *end;
    const char *text = argument(arguments, name);
    long value = strtol(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value < least || value > most)
        fail(EXIT_USAGE, "%s: %s=%s is not a number from %ld to %ld", arguments[0], name, text, least, most);
    return value;
}

static int choice_argument(char **arguments, const char *name, const char *const *choices) {
    const char *text = argument(arguments, name);
    for (int index = 0; choices[index]; index++)
        if (!strcmp(text, choices[index]))
            return index;
    fail(EXIT_USAGE, "%s: %s=%s is none of its values", arguments[0], name, text);
}

/* Wait until the caller wants to go on. */
static void wait_for_line(void) {
    char line[16];
    if (fgets(line, sizeof line, stdin) == NULL)
        fail(EXIT_USAGE, "whoever started this is gone");
}

static struct sockaddr_in broker_address(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
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

/* Write a CONNECT into HANDSHAKE_BYTES_MAX; returns its length. */
static size_t put_connect(uint8_t *to, const char *client_id, int is_clean) {
    size_t used = 1;
    to[0] = CONNECT;
    used += put_length(to + used, 12 + strlen(client_id));
    used += put_string(to + used, "MQTT");
    to[used++] = 4;
    to[used++] = is_clean ? 0x02 : 0x00;
    to[used++] = (uint8_t)(keep_alive_s >> 8);
    to[used++] = (uint8_t)keep_alive_s;
    return used + put_string(to + used, client_id);
}

#endif
