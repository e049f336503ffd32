/* The load of the fan-out benchmark: many Socket.IO clients over websocket in one process that does as little as it can.
 *
 * It connects to 127.0.0.1 only, speaks Engine.IO 4 and Socket.IO 5 as far as a listener must, and counts the events
 * that come. What to do it reads from standard input, a command a line, and answers each with a line of JSON:
 *
 *   auth PAYLOAD      a CONNECT payload; the connections opened later take the payloads in turn           {"payloads"}
 *   open COUNT MOST   opens so many connections, at most MOST of them under way at a time,
 *                     and waits until each has its CONNECT reply                                 {"open", "seconds", "core"}
 *   stall COUNT       never reads again from the newest connections, and counts them no more                {"stalled"}
 *   expect EVENTS TIMED   starts counting anew; TIMED is 1 if each event's latency is wanted               {"expecting"}
 *   wait SECONDS      until every reading connection has had that many events, or the time is over
 *                              {"received", "missing", "misplaced", "bytes", "last_ns", "core", "p50_ms", "p99_ms", "max_ms"}
 *   status                                                                          {"open", "closed", "pings", "others"}
 *   close COUNT       closes the newest connections                                                           {"open"}
 *
 * An event is counted by its mark, #<8 digits>@<20 digits>, somewhere in it: its number, counted from 0 since `expect`, and
 * the moment of sending in nanoseconds on CLOCK_MONOTONIC, which all processes of a machine share. Events without one are
 * counted as "others". A fault that makes the figures worthless ends the program with a message.
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
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUFFER (256 * 1024)
#define CARRIED (64 * 1024) /* the longest frame */
#define AT_ONCE 512
#define NAP_NS 50000
#define NUMBER_DIGITS 8
#define MOMENT_DIGITS 20
/* Latencies go into buckets, 64 to each doubling of nanoseconds: their width is 1.6 % of the value at most. */
#define FINE_BITS 6
#define BUCKETS ((64 - FINE_BITS) << FINE_BITS)

static const char KEY[] = "dGhlIHNhbXBsZSBub25jZQ==";
static const char ACCEPT[] = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="; /* what RFC 6455, section 1.3, answers to that key */

enum state { CONNECTING, UPGRADING, OPENING, JOINING, LISTENING, STALLED, CLOSED };

struct connection {
    int fd;
    enum state state;
    int payload;
    uint32_t next;    /* the number of the event that comes next */
    uint32_t carried; /* bytes of an unfinished frame */
    unsigned char *carry;
};

static struct connection *connections;
static int made, room, opening, in_flight, most_in_flight, wanted_open, listening, closed, stalled;
static char **payloads;
static int payload_count;
static int port, epoll;
static char buffer[CARRIED + BUFFER];

static int timed, waiting;
static uint64_t expected, received, misplaced, bytes, pings, others, first_ns, last_ns, cpu_at_first, wait_until;
static uint64_t open_began, open_cpu;
static uint64_t latencies[BUCKETS], longest;

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "websocket_load: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    exit(1);
}

static void answer(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
    fflush(stdout);
}

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + time.tv_nsec;
}

static uint64_t cpu_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * 1000000000u + time.tv_nsec;
}

static double share(uint64_t cpu, uint64_t elapsed) { return elapsed ? (double)cpu / elapsed : 0; }

/* Latencies */

static int bucket_of(uint64_t value) {
    if (value < (1 << FINE_BITS)) return value;
    int shift = 63 - __builtin_clzll(value) - FINE_BITS;
    return ((shift + 1) << FINE_BITS) + (int)((value >> shift) & ((1 << FINE_BITS) - 1));
}

static double milliseconds_of(int bucket) {
    int shift = (bucket >> FINE_BITS) - 1;
    uint64_t fine = bucket & ((1 << FINE_BITS) - 1);
    if (shift < 0) return fine / 1e6;
    return (((1ull << FINE_BITS) + fine) << shift) * (1 + 1.0 / (2 << FINE_BITS)) / 1e6;
}

static double percentile(uint64_t percent) {
    uint64_t rank = (received * percent + 99) / 100, seen = 0;
    for (int i = 0; i < BUCKETS; i++) {
        seen += latencies[i];
        if (seen >= rank && seen) return milliseconds_of(i);
    }
    return 0;
}

/* Sending: the few and short frames of a client always fit the socket's buffer. */

static void send_all(struct connection *connection, const char *data, size_t length) {
    if (send(connection->fd, data, length, MSG_NOSIGNAL) != (ssize_t)length && errno != EPIPE && errno != ECONNRESET)
        die("could not send %zu bytes: %s", length, strerror(errno));
}

static void send_frame(struct connection *connection, int opcode, const char *payload, size_t length) {
    static const unsigned char mask[4] = {0x37, 0xfa, 0x21, 0x3d};
    char frame[8 + 4096];
    size_t head = 2;
    if (length > 4096) die("a payload of %zu bytes is too long", length);
    frame[0] = 0x80 | opcode;
    if (length < 126) {
        frame[1] = 0x80 | length;
    } else {
        frame[1] = 0x80 | 126;
        frame[2] = length >> 8;
        frame[3] = length;
        head = 4;
    }
    memcpy(frame + head, mask, 4);
    for (size_t i = 0; i < length; i++) frame[head + 4 + i] = payload[i] ^ mask[i & 3];
    send_all(connection, frame, head + 4 + length);
}

/* Opening */

static void open_next(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct connection *connection = &connections[made];
    int on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    *connection = (struct connection){.state = CONNECTING, .payload = payload_count ? made % payload_count : -1};
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (connection->fd < 0) die("no more than %d connections: %s", made, strerror(errno));
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(connection->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        die("could not connect: %s", strerror(errno));
    struct epoll_event event = {.events = EPOLLOUT, .data.u32 = made};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, connection->fd, &event)) die("epoll_ctl: %s", strerror(errno));
    made++;
    in_flight++;
}

static void open_more(void) {
    while (opening && made < wanted_open && in_flight < most_in_flight) open_next();
    if (opening && made == wanted_open && !in_flight) {
        uint64_t elapsed = now_ns() - open_began;
        opening = 0;
        answer("{\"open\": %d, \"seconds\": %.6f, \"core\": %.4f}", listening, elapsed / 1e9,
               share(cpu_ns() - open_cpu, elapsed));
    }
}

static void upgrade(struct connection *connection, int index) {
    char request[512];
    int fault = 0;
    socklen_t size = sizeof fault;
    getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &fault, &size);
    if (fault) die("could not connect: %s", strerror(fault));
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = index};
    epoll_ctl(epoll, EPOLL_CTL_MOD, connection->fd, &event);
    connection->state = UPGRADING;
    int length = snprintf(request, sizeof request,
                          "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                          "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                          "Sec-WebSocket-Key: %s\r\n\r\n",
                          port, KEY);
    send_all(connection, request, length);
}

/* The length of the server's answer to the upgrade; 0 while it is not whole. */
static size_t upgraded(const char *data, size_t length) {
    const char *end = memmem(data, length, "\r\n\r\n", 4);
    if (!end) return 0;
    if (length < 12 || memcmp(data, "HTTP/1.1 101", 12) || !memmem(data, end - data, ACCEPT, sizeof ACCEPT - 1))
        die("the server refused a websocket: %.*s", (int)(end - data), data);
    return end + 4 - data;
}

static void joined(struct connection *connection) {
    connection->state = LISTENING;
    listening++;
    in_flight--;
}

/* Receiving */

static uint64_t digits(const char *text, int count) {
    uint64_t value = 0;
    for (int i = 0; i < count; i++) value = value * 10 + (text[i] - '0');
    return value;
}

static void event_came(struct connection *connection, const char *payload, size_t length, uint64_t now) {
    const char *mark = memchr(payload, '#', length);
    if (!mark || payload + length - mark < 2 + NUMBER_DIGITS + MOMENT_DIGITS || mark[1 + NUMBER_DIGITS] != '@') {
        others++;
        return;
    }
    uint32_t number = digits(mark + 1, NUMBER_DIGITS);
    if (number != connection->next) misplaced++;
    connection->next = number + 1;
    received++;
    if (timed) {
        uint64_t moment = digits(mark + 2 + NUMBER_DIGITS, MOMENT_DIGITS);
        uint64_t latency = now > moment ? now - moment : 0;
        latencies[bucket_of(latency)]++;
        if (latency > longest) longest = latency;
    }
}

static void text_came(struct connection *connection, const char *payload, size_t length, uint64_t now) {
    if (length >= 2 && payload[0] == '4' && payload[1] == '2') {
        event_came(connection, payload, length, now);
    } else if (length && payload[0] == '2') {
        pings++;
        send_frame(connection, 1, "3", 1);
    } else if (length && payload[0] == '0' && connection->state == OPENING) {
        char connect[4096];
        const char *payload_text = connection->payload < 0 ? "" : payloads[connection->payload];
        connection->state = JOINING;
        send_frame(connection, 1, connect, snprintf(connect, sizeof connect, "40%s", payload_text));
    } else if (length >= 2 && payload[0] == '4' && payload[1] == '0' && connection->state == JOINING) {
        joined(connection);
    } else if (length >= 2 && payload[0] == '4' && payload[1] == '4') {
        die("the server refused a CONNECT: %.*s", (int)(length < 200 ? length : 200), payload);
    } else {
        others++;
    }
}

static void ended(struct connection *connection) {
    if (connection->state < LISTENING) die("the server closed a connection that was being opened");
    listening--;
    closed++;
    connection->state = CLOSED;
    close(connection->fd);
    free(connection->carry);
    connection->carry = NULL;
    connection->carried = 0;
}

/* Takes whole frames; returns how many bytes they were. */
static size_t take_frames(struct connection *connection, const char *data, size_t length, uint64_t now) {
    size_t taken = 0;
    while (length - taken >= 2) {
        const unsigned char *head = (const unsigned char *)data + taken;
        size_t size = head[1] & 0x7f, head_size = 2;
        if (size == 126) {
            head_size = 4;
            if (length - taken < head_size) break;
            size = head[2] << 8 | head[3];
        } else if (size == 127) {
            die("a frame is longer than 64 KiB");
        }
        if (length - taken < head_size + size) break;
        const char *payload = data + taken + head_size;
        taken += head_size + size;
        switch (head[0]) {
        case 0x81: text_came(connection, payload, size, now); break;
        case 0x89: send_frame(connection, 10, payload, size); break;
        case 0x88: return taken; /* the end of the stream follows */
        default: die("a frame began with 0x%02x", head[0]);
        }
    }
    return taken;
}

static void keep(struct connection *connection, const char *data, size_t length) {
    if (length > CARRIED) die("a frame is longer than %d bytes", CARRIED);
    if (length) {
        connection->carry = realloc(connection->carry, length);
        if (!connection->carry) die("out of memory");
        memcpy(connection->carry, data, length);
    } else if (connection->carry) {
        free(connection->carry);
        connection->carry = NULL;
    }
    connection->carried = length;
}

static void readable(struct connection *connection) {
    memcpy(buffer, connection->carry ? (char *)connection->carry : "", connection->carried);
    ssize_t got = recv(connection->fd, buffer + connection->carried, BUFFER, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        ended(connection);
        return;
    }
    uint64_t now = now_ns(), received_before = received;
    if (!first_ns && connection->state == LISTENING) {
        first_ns = now;
        cpu_at_first = cpu_ns();
    }
    bytes += got;
    size_t length = connection->carried + got, taken = 0;
    if (connection->state == UPGRADING && (taken = upgraded(buffer, length))) connection->state = OPENING;
    if (connection->state != UPGRADING) taken += take_frames(connection, buffer + taken, length - taken, now);
    keep(connection, buffer + taken, length - taken);
    if (received != received_before) last_ns = now;
}

/* Commands */

static void start_opening(int count, int most) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if ((rlim_t)(made + count + 16) > limit.rlim_cur)
        die("%d connections need more open files than the system allows (ulimit -n %ju)", made + count,
            (uintmax_t)limit.rlim_cur);
    if (made + count > room) {
        room = made + count;
        connections = realloc(connections, room * sizeof *connections);
        if (!connections) die("out of memory");
    }
    opening = 1;
    wanted_open = made + count;
    most_in_flight = most;
    open_began = now_ns();
    open_cpu = cpu_ns();
}

/* The newest connections that still listen, at most `count` of them, are put into `state`. */
static int set_aside(int count, enum state state) {
    int done = 0;
    for (int i = made - 1; i >= 0 && done < count; i--) {
        if (connections[i].state != LISTENING) continue;
        epoll_ctl(epoll, EPOLL_CTL_DEL, connections[i].fd, NULL);
        if (state == CLOSED) close(connections[i].fd);
        connections[i].state = state;
        listening--;
        done++;
    }
    return done;
}

static void expect(uint32_t count, int with_latencies) {
    timed = with_latencies;
    expected = (uint64_t)count * listening;
    received = misplaced = bytes = first_ns = last_ns = longest = 0;
    memset(latencies, 0, sizeof latencies);
    for (int i = 0; i < made; i++) connections[i].next = 0;
    answer("{\"expecting\": %ju}", (uintmax_t)expected);
}

static void finish_wait(void) {
    waiting = 0;
    answer("{\"received\": %ju, \"missing\": %jd, \"misplaced\": %ju, \"bytes\": %ju, \"last_ns\": %ju, \"core\": %.4f, "
           "\"p50_ms\": %.4f, \"p99_ms\": %.4f, \"max_ms\": %.4f}",
           (uintmax_t)received, (intmax_t)(expected - received), (uintmax_t)misplaced, (uintmax_t)bytes,
           (uintmax_t)last_ns, share(cpu_ns() - cpu_at_first, now_ns() - first_ns), timed ? percentile(50) : 0,
           timed ? percentile(99) : 0, longest / 1e6);
}

static void add_payload(const char *text) {
    payloads = realloc(payloads, (payload_count + 1) * sizeof *payloads);
    if (!payloads || !(payloads[payload_count] = strdup(text))) die("out of memory");
    payload_count++;
    answer("{\"payloads\": %d}", payload_count);
}

static void command(const char *line) {
    int count, second;
    double seconds;
    if (!strncmp(line, "auth ", 5)) {
        add_payload(line + 5);
    } else if (sscanf(line, "open %d %d", &count, &second) == 2) {
        start_opening(count, second);
    } else if (sscanf(line, "stall %d", &count) == 1) {
        stalled += set_aside(count, STALLED);
        answer("{\"stalled\": %d}", stalled);
    } else if (sscanf(line, "close %d", &count) == 1) {
        set_aside(count, CLOSED);
        answer("{\"open\": %d}", listening);
    } else if (sscanf(line, "expect %d %d", &count, &second) == 2) {
        expect(count, second);
    } else if (sscanf(line, "wait %lf", &seconds) == 1) {
        waiting = 1;
        wait_until = now_ns() + (uint64_t)(seconds * 1e9);
    } else if (!strcmp(line, "status")) {
        answer("{\"open\": %d, \"closed\": %d, \"pings\": %ju, \"others\": %ju}", listening, closed, (uintmax_t)pings,
               (uintmax_t)others);
    } else {
        die("unknown command: %s", line);
    }
}

/* Whole lines of standard input; its end ends the program. */
static void commands(void) {
    static char lines[8192];
    static size_t length;
    ssize_t got = read(STDIN_FILENO, lines + length, sizeof lines - length);
    if (got <= 0) exit(0);
    length += got;
    char *end, *start = lines;
    while ((end = memchr(start, '\n', lines + length - start))) {
        *end = 0;
        command(start);
        start = end + 1;
    }
    length -= start - lines;
    if (length == sizeof lines) die("a command is too long");
    memmove(lines, start, length);
}

/* Whoever sleeps in epoll_wait is woken by each delivery at the sender's cost, more than half a microsecond. Real
 * clients are elsewhere, so while it counts this one looks every now and then by itself. */
static void nap(void) {
    struct timespec time = {.tv_nsec = NAP_NS};
    nanosleep(&time, NULL);
}

int main(int count, char **arguments) {
    struct epoll_event ready[AT_ONCE], input = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
    if (count != 2 || (port = atoi(arguments[1])) <= 0) die("usage: websocket_load PORT");
    prctl(PR_SET_TIMERSLACK, 1);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &input)) die("standard input must be a pipe");
    for (;;) {
        open_more();
        if (waiting && (received >= expected || now_ns() > wait_until)) finish_wait();
        int found = epoll_wait(epoll, ready, AT_ONCE, waiting ? 0 : -1);
        if (waiting && !found) nap();
        for (int i = 0; i < found; i++) {
            uint32_t index = ready[i].data.u32;
            if (index == UINT32_MAX)
                commands();
            else if (connections[index].state == CONNECTING)
                upgrade(&connections[index], index);
            else if (connections[index].state < STALLED)
                readable(&connections[index]);
        }
    }
}
