/* One load for all: publishes at one node, receives at others, counts, and times; one thread, one poll loop.
 *
 *   load --proto linkd|mqtt|nats --pub PORT --sub PORT[,PORT...] [options]
 *
 * Every message begins with 20 bytes: when it was sent (ns, monotonic), its number on its channel, its channel.
 * So every receiver knows what is missing, repeated or out of order, and how long each message took.
 * Writes one JSON object. bench/load.py compiles and runs it. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef uint8_t u8;
typedef uint64_t u64;
enum { LINKD, MQTT, NATS };
enum { HEAD = 20, MAX_CHANNELS = 1000, STALL_SECONDS = 20, OUT_BYTES = 1 << 20, CREDIT = 1 << 25, GATHER_BYTES = 1 << 17 };

struct bytes { u8 *at; size_t begin, end, cap; };
struct conn {
    int fd, is_pub, port, ready;
    struct bytes in, out, whole;          /* whole: a WebSocket message in fragments */
    u64 received, *next;                  /* next: the number expected on each channel */
    u64 owed_credit;
    struct bytes gathered;                /* linkd: publishes of this turn */
    int frames;
};

static struct {
    int proto, size, batch, channels, groups, qos, sink, early, lasting, alone, shared;
    long window, rate, copies;
    u64 count;
    double seconds;
} o = {.size = 100, .batch = 1, .channels = 1, .groups = 1, .qos = 1, .window = 1000};

static struct conn *conns;
static int n_conns, n_subs;
static u64 sent, acked, published_units, acked_units, gaps, repeats, numbers[MAX_CHANNELS];
static u64 first_send, last_ack, last_receive, first_receive, n_latencies;
static uint32_t *latencies;
static const u64 MAX_LATENCIES = 4000000;

static u64 now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (u64)t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void die(const char *what) {
    fprintf(stderr, "load: %s\n", what);
    exit(1);
}

static u8 *room(struct bytes *b, size_t n) {
    if (b->begin == b->end) b->begin = b->end = 0;
    if (b->end + n > b->cap && b->begin) {
        memmove(b->at, b->at + b->begin, b->end - b->begin);
        b->end -= b->begin;
        b->begin = 0;
    }
    if (b->end + n > b->cap) {
        b->cap = (b->end + n) * 2;
        if (!(b->at = realloc(b->at, b->cap))) die("no memory");
    }
    return b->at + b->end;
}

static void add(struct bytes *b, const void *from, size_t n) {
    memcpy(room(b, n), from, n);
    b->end += n;
}

static void addc(struct bytes *b, int c) { u8 x = c; add(b, &x, 1); }
static void big(struct bytes *b, u64 v, int n) { while (n--) addc(b, v >> (8 * n)); }

/* msgpack, as far as linkd's frames need it */

static void pack_bin(struct bytes *b, size_t n) {
    if (n < 256) { addc(b, 0xc4); big(b, n, 1); }
    else if (n < 65536) { addc(b, 0xc5); big(b, n, 2); }
    else { addc(b, 0xc6); big(b, n, 4); }
}

static size_t bin_head(size_t n) { return n < 256 ? 2 : n < 65536 ? 3 : 5; }

static u64 be(const u8 *p, int n) {
    u64 v = 0;
    while (n--) v = v << 8 | *p++;
    return v;
}

/* Step over the head of a value: its number, or its length in items or bytes. Returns 'i' number, 'a' array,
 * 'b' bytes or text, 'o' other. */
static int head(const u8 **p, u64 *v) {
    u8 c = *(*p)++;
    *v = 0;
    if (c < 0x80) { *v = c; return 'i'; }
    if (c < 0x90) { *v = 2 * (c & 15); return 'a'; }
    if (c < 0xa0) { *v = c & 15; return 'a'; }
    if (c < 0xc0) { *v = c & 31; return 'b'; }
    if (c >= 0xe0) return 'i';
    int n;
    switch (c) {
    case 0xc0: case 0xc2: case 0xc3: return 'o';
    case 0xc4: case 0xd9: n = 1; break;
    case 0xc5: case 0xda: n = 2; break;
    case 0xc6: case 0xdb: n = 4; break;
    case 0xca: *p += 4; return 'o';
    case 0xcb: *p += 8; return 'o';
    case 0xcc: case 0xd0: *v = be(*p, 1); *p += 1; return 'i';
    case 0xcd: case 0xd1: *v = be(*p, 2); *p += 2; return 'i';
    case 0xce: case 0xd2: *v = be(*p, 4); *p += 4; return 'i';
    case 0xcf: case 0xd3: *v = be(*p, 8); *p += 8; return 'i';
    case 0xdc: *v = be(*p, 2); *p += 2; return 'a';
    case 0xdd: *v = be(*p, 4); *p += 4; return 'a';
    case 0xde: *v = 2 * be(*p, 2); *p += 2; return 'a';
    default: die("msgpack that linkd does not send"); return 0;
    }
    *v = be(*p, n);
    *p += n;
    return 'b';
}

static void skip(const u8 **p) {
    u64 v;
    int kind = head(p, &v);
    if (kind == 'b') *p += v;
    else if (kind == 'a') while (v--) skip(p);
}

static u64 number(const u8 **p) {
    u64 v;
    if (head(p, &v) != 'i') die("expected a number");
    return v;
}

/* messages */

static int channel_name(char *to, int channel) {
    const char *format = o.proto == MQTT ? "bench/%d/%d/%d" : "bench.%d.%d.%d";
    return sprintf(to, format, channel % o.groups, o.shared ? channel % n_subs : 0, channel);
}

static void body(struct bytes *b, int channel, u64 at) {
    u64 num = numbers[channel]++;
    uint32_t c = channel;
    u8 *to = room(b, o.size);
    memcpy(to, &at, 8);
    memcpy(to + 8, &num, 8);
    memcpy(to + 16, &c, 4);
    memset(to + HEAD, 'x', o.size - HEAD);
    b->end += o.size;
}

static void got(struct conn *c, const u8 *at, size_t size) {
    u64 t, num;
    uint32_t channel;
    if (size != (size_t)o.size) die("a message of another size arrived");
    memcpy(&t, at, 8);
    memcpy(&num, at + 8, 8);
    memcpy(&channel, at + 16, 4);
    if (channel >= MAX_CHANNELS) die("a message of another kind arrived");
    c->received++;
    u64 *next = &c->next[channel];
    if (num == *next) ++*next;
    else if (num > *next) { gaps += num - *next; *next = num + 1; }
    else repeats++;
    if (n_latencies < MAX_LATENCIES) latencies[n_latencies++] = (last_receive - t) / 1000;
}

/* linkd: WebSocket, subprotocol linkd.client.1. The mask is zero, which spares the client the XOR, not the daemon. */

static void ws_head(struct bytes *b, int opcode, size_t n) {
    addc(b, 0x80 | opcode);
    if (n < 126) addc(b, 0x80 | n);
    else if (n < 65536) { addc(b, 0x80 | 126); big(b, n, 2); }
    else { addc(b, 0x80 | 127); big(b, n, 8); }
    big(b, 0, 4);
}

static void ws_send(struct conn *c, const struct bytes *m) {
    ws_head(&c->out, 2, m->end);
    add(&c->out, m->at, m->end);
}

/* Send the publishes gathered as one message. */
static void linkd_seal(struct conn *c) {
    if (!c->frames) return;
    ws_head(&c->out, 2, 3 + c->gathered.end);
    addc(&c->out, 0xdc); big(&c->out, c->frames, 2);
    add(&c->out, c->gathered.at, c->gathered.end);
    c->gathered.begin = c->gathered.end = 0;
    c->frames = 0;
}

/* Gather one publish. As linkd's own clients do, those of one turn share a WebSocket message, unless --alone. */
static void linkd_put(struct conn *c, int channel, u64 at) {
    char name[64];
    int n = channel_name(name, channel);
    size_t record = 1 + bin_head(o.size) + o.size + 3, records = record * o.batch;
    struct bytes *b = &c->gathered;
    c->frames++;
    addc(b, 0x97); addc(b, 2);
    addc(b, 0xcf); big(b, published_units + 1, 8);
    addc(b, 0xa0 | n); add(b, name, n);
    addc(b, 0xcd); big(b, o.batch, 2);
    pack_bin(b, records);
    for (int i = 0; i < o.batch; i++) {
        addc(b, 0x94);
        pack_bin(b, o.size);
        body(b, channel, at);
        addc(b, 0xa0); addc(b, 0xa0); addc(b, 0xa0);
    }
    addc(b, 0xc0); addc(b, 0x90);
    if (o.alone || b->end >= GATHER_BYTES) linkd_seal(c);
}

static void linkd_deliver(struct conn *c, const u8 *p) {
    u64 n, count, size;
    number(&p); number(&p);
    skip(&p);
    count = number(&p);
    head(&p, &size);
    for (u64 i = 0; i < count; i++) {
        head(&p, &n);
        for (u64 item = 0; item < n; item++) {
            u64 bytes;
            head(&p, &bytes);
            if (item == 0) got(c, p, bytes);
            p += bytes;
        }
    }
    c->owed_credit += size;
    if (c->owed_credit >= 262144) {
        struct bytes m = {0};
        addc(&m, 0x91); addc(&m, 0x93); addc(&m, 6); addc(&m, 1);
        addc(&m, 0xce); big(&m, c->owed_credit, 4);
        ws_send(c, &m);
        free(m.at);
        c->owed_credit = 0;
    }
}

static void linkd_message(struct conn *c, const u8 *p) {
    u64 frames, items;
    head(&p, &frames);
    while (frames--) {
        const u8 *frame = p, *in = p;
        head(&in, &items);
        int tag = number(&in);
        skip(&p);
        if (tag == 38) linkd_deliver(c, in);
        else if (tag == 33) {
            acked_units++;
            number(&in); number(&in);
            acked += number(&in);
        } else if (tag == 34) {
            number(&in); number(&in);
            u64 n = number(&in);
            acked_units += n;
            acked += n;
        } else if (tag == 35 || tag == 42 || tag == 44) {
            fprintf(stderr, "load: the daemon refused (frame %d): %.*s\n", tag, (int)(p - frame), frame);
            exit(1);
        } else c->ready = tag;
    }
}

static size_t linkd_take(struct conn *c, const u8 *p, size_t n) {
    if (n < 2) return 0;
    size_t at = 2, size = p[1] & 127;
    if (size == 126) { if (n < 4) return 0; size = be(p + 2, 2); at = 4; }
    else if (size == 127) { if (n < 10) return 0; size = be(p + 2, 8); at = 10; }
    if (n < at + size) return 0;
    int opcode = p[0] & 15, fin = p[0] & 0x80;
    if (opcode == 9) { ws_head(&c->out, 10, size); add(&c->out, p + at, size); }
    else if (opcode == 8) die("the daemon closed the stream");
    else if (opcode == 2 && fin) linkd_message(c, p + at);
    else if (opcode == 2 || opcode == 0) {
        add(&c->whole, p + at, size);
        if (fin) { linkd_message(c, c->whole.at); c->whole.begin = c->whole.end = 0; }
    }
    return at + size;
}

/* mqtt 3.1.1 */

static void mqtt_head(struct bytes *b, int first, size_t n) {
    addc(b, first);
    do { addc(b, (n & 127) | (n > 127 ? 128 : 0)); n >>= 7; } while (n);
}

static void mqtt_put(struct conn *c, int channel, u64 at) {
    char name[64];
    int n = channel_name(name, channel);
    struct bytes *b = &c->out;
    mqtt_head(b, 0x30 | o.qos << 1, 2 + n + 2 + o.size);
    big(b, n, 2); add(b, name, n);
    big(b, published_units % 65535 + 1, 2);
    body(b, channel, at);
}

static void mqtt_answer(struct conn *c, int first, const u8 *id) {
    addc(&c->out, first); addc(&c->out, 2); add(&c->out, id, 2);
}

static size_t mqtt_take(struct conn *c, const u8 *p, size_t n) {
    size_t at = 1, size = 0;
    for (int shift = 0;; shift += 7) {
        if (at >= n) return 0;
        size |= (size_t)(p[at] & 127) << shift;
        if (p[at++] < 128) break;
    }
    if (n < at + size) return 0;
    const u8 *in = p + at;
    int qos = p[0] >> 1 & 3;
    switch (p[0] >> 4) {
    case 3: {
        size_t topic = 2 + be(in, 2), id = topic + (qos ? 2 : 0);
        got(c, in + id, size - id);
        if (qos) mqtt_answer(c, qos == 1 ? 0x40 : 0x50, in + topic);
        break;
    }
    case 5: mqtt_answer(c, 0x62, in); break;
    case 6: mqtt_answer(c, 0x70, in); break;
    case 4: case 7: acked_units++; acked++; break;
    case 2: case 9: c->ready = p[0] >> 4; break;
    default: break;
    }
    return at + size;
}

/* nats */

static void nats_put(struct conn *c, int channel, u64 at) {
    char name[64], line[160];
    channel_name(name, channel);
    add(&c->out, line, sprintf(line, "PUB %s acks.load %d\r\n", name, o.size));
    body(&c->out, channel, at);
    add(&c->out, "\r\n", 2);
}

static size_t nats_take(struct conn *c, const u8 *p, size_t n) {
    const u8 *end = memmem(p, n < 4096 ? n : 4096, "\r\n", 2);
    if (!end) return 0;
    size_t line = end - p + 2;
    if (!memcmp(p, "MSG ", 4)) {
        const u8 *digits = end;
        while (digits[-1] != ' ') digits--;
        size_t size = strtoul((const char *)digits, NULL, 10);
        if (n < line + size + 2) return 0;
        const u8 *in = p + line;
        if (!c->is_pub) got(c, in, size);
        else if (memmem(in, size, "\"error\"", 7)) {
            fprintf(stderr, "load: JetStream refused: %.*s\n", (int)size, in);
            exit(1);
        } else { acked_units++; acked++; }
        return line + size + 2;
    }
    if (!memcmp(p, "PING", 4)) add(&c->out, "PONG\r\n", 6);
    else if (!memcmp(p, "-ERR", 4)) die((const char *)p);
    else if (!memcmp(p, "PONG", 4)) c->ready = 1;
    else if (!memcmp(p, "INFO", 4) && !c->ready) c->ready = 2;
    return line;
}

/* connections */

static void put(struct conn *c, int channel, u64 at) {
    if (o.proto == LINKD) linkd_put(c, channel, at);
    else if (o.proto == MQTT) mqtt_put(c, channel, at);
    else nats_put(c, channel, at);
}

static size_t take(struct conn *c, const u8 *p, size_t n) {
    if (o.proto == LINKD) return linkd_take(c, p, n);
    return o.proto == MQTT ? mqtt_take(c, p, n) : nats_take(c, p, n);
}

static void drain_out(struct conn *c) {
    while (c->out.begin < c->out.end) {
        ssize_t n = send(c->fd, c->out.at + c->out.begin, c->out.end - c->out.begin, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (n < 0) die("a node closed the connection");
        c->out.begin += n;
    }
}

static void fill_in(struct conn *c, int flags) {
    u8 *to = room(&c->in, 262144);
    ssize_t n = recv(c->fd, to, 262144, flags);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) die("a node closed the connection");
    c->in.end += n;
    last_receive = now();
    u64 before = c->received, acks = acked;
    for (size_t took; c->in.begin < c->in.end; c->in.begin += took)
        if (!(took = take(c, c->in.at + c->in.begin, c->in.end - c->in.begin))) break;
    if (c->received != before && !first_receive) first_receive = last_receive;
    if (acked != acks) last_ack = last_receive;
}

static void await(struct conn *c, int ready) {
    drain_out(c);
    while (c->ready != ready) { fill_in(c, 0); drain_out(c); }
}

static void greet_linkd(struct conn *c, int index) {
    char line[512];
    size_t n = sprintf(line, "GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Protocol: linkd.client.1\r\n\r\n", c->port);
    if (send(c->fd, line, n, MSG_NOSIGNAL) != (ssize_t)n) die("cannot greet");
    for (n = 0; n < sizeof line - 1; n++) {
        if (recv(c->fd, line + n, 1, 0) != 1) die("no answer to the upgrade");
        if (n > 3 && !memcmp(line + n - 3, "\r\n\r\n", 4)) break;
    }
    if (memcmp(line, "HTTP/1.1 101", 12)) die("the upgrade was refused");
    struct bytes m = {0};
    addc(&m, 0x91); addc(&m, 0x94); addc(&m, 1); addc(&m, 1);
    int name = c->is_pub ? sprintf(line, "load-%d-%llu", getpid(), (unsigned long long)now()) : 0;
    addc(&m, 0xd9); addc(&m, name); add(&m, line, name);
    addc(&m, 0xa4); add(&m, "load", 4);
    ws_send(c, &m);
    await(c, 32);
    if (!c->is_pub) {
        m.begin = m.end = 0;
        const char *start = o.early ? "earliest" : "latest";
        name = o.shared ? sprintf(line, "bench.*.%d.*", index) : sprintf(line, "bench.>");
        addc(&m, 0x91); addc(&m, 0x96); addc(&m, 4); addc(&m, 1); addc(&m, 0x91);
        addc(&m, 0xa0 | name); add(&m, line, name);
        addc(&m, 0xa0 | (int)strlen(start)); add(&m, start, strlen(start));
        addc(&m, 0xa0); addc(&m, 0xce); big(&m, CREDIT, 4);
        ws_send(c, &m);
        await(c, 37);
    }
    free(m.at);
}

static void greet_mqtt(struct conn *c, int index) {
    char name[64];
    int n = c->is_pub ? sprintf(name, "load-pub-%d", getpid()) : sprintf(name, "load-sub-%d", index);
    mqtt_head(&c->out, 0x10, 10 + 2 + n);
    add(&c->out, "\0\4MQTT\4", 7);
    addc(&c->out, c->is_pub || !o.lasting ? 2 : 0);
    big(&c->out, 600, 2);
    big(&c->out, n, 2); add(&c->out, name, n);
    await(c, 2);
    if (!c->is_pub) {
        mqtt_head(&c->out, 0x82, 2 + 2 + 7 + 1);
        big(&c->out, 1, 2); big(&c->out, 7, 2); add(&c->out, "bench/#", 7); addc(&c->out, o.qos);
        await(c, 9);
    }
}

static void greet_nats(struct conn *c) {
    const char *hello = "CONNECT {\"verbose\":false,\"pedantic\":false,\"echo\":true}\r\n";
    await(c, 2);
    add(&c->out, hello, strlen(hello));
    hello = c->is_pub ? "SUB acks.load 1\r\nPING\r\n" : "SUB deliver.bench 1\r\nPING\r\n";
    add(&c->out, hello, strlen(hello));
    await(c, 1);
}

static void open_conn(struct conn *c, int port, int is_pub, int index) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1;
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    c->port = port;
    c->is_pub = is_pub;
    c->next = calloc(MAX_CHANNELS, sizeof *c->next);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to)) die("nobody listens");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (o.proto == LINKD) greet_linkd(c, index);
    else if (o.proto == MQTT) greet_mqtt(c, index);
    else greet_nats(c);
}

/* the sink: acknowledges and delivers at once by counting bytes, so that the load meets only itself */

static void sink(int from, int to) {
    struct conn one = {.is_pub = 1}, ack = {0}, deliver = {0};
    o.alone = 1;
    put(&one, 0, now());
    size_t unit = one.out.end, have = 0;
    if (o.proto == LINKD) {
        static const u8 answer[] = {0x82, 7, 0x91, 0x95, 33, 1, 1, 0, 0xc2};
        const u8 *records = one.out.at + unit - 2;
        size_t size = (size_t)(1 + bin_head(o.size) + o.size + 3) * o.batch;
        struct bytes m = {0};
        add(&ack.out, answer, sizeof answer);
        ack.out.at[7] = o.batch;
        addc(&m, 0x91); addc(&m, 0x99); addc(&m, 38); addc(&m, 1); addc(&m, 1); addc(&m, 0xa1); addc(&m, 'b');
        addc(&m, 0xcd); big(&m, o.batch, 2);
        pack_bin(&m, size);
        add(&m, records - size, size);
        addc(&m, 0); addc(&m, 0xa0); addc(&m, 1);
        ws_head(&deliver.out, 2, m.end);
        deliver.out.at[1] &= 127;
        deliver.out.end -= 4;                    /* a server does not mask */
        add(&deliver.out, m.at, m.end);
    } else if (o.proto == MQTT) {
        add(&ack.out, "\x40\2\0\1", 4);
        add(&deliver.out, one.out.at, unit);
    } else {
        const char *json = "MSG acks.load 1 29\r\n{\"stream\":\"BENCH\",\"seq\":1234}\r\n";
        add(&ack.out, json, strlen(json));
        char line[64];
        add(&deliver.out, line, sprintf(line, "MSG deliver.bench 1 %d\r\n", o.size));
        add(&deliver.out, one.out.at + unit - o.size - 2, o.size + 2);
    }
    struct conn pub = {.fd = from}, sub = {.fd = to};
    static u8 scrap[262144];
    for (;;) {
        ssize_t n = 0;
        struct pollfd f[2] = {{from, POLLIN, 0}, {to, POLLIN, 0}};
        if (sub.out.end - sub.out.begin > OUT_BYTES) { f[0].events = 0; }
        if (sub.out.begin < sub.out.end) f[1].events |= POLLOUT;
        if (pub.out.begin < pub.out.end) f[0].events |= POLLOUT;
        poll(f, 2, -1);
        if (f[0].revents & (POLLIN | POLLHUP) && f[0].events & POLLIN) {
            if ((n = recv(from, scrap, sizeof scrap, MSG_DONTWAIT)) == 0) _exit(0);
            if (n < 0) n = 0;
        }
        if (f[1].revents & POLLIN && recv(to, scrap, sizeof scrap, MSG_DONTWAIT) == 0) _exit(0);
        for (have += n; have >= unit; have -= unit) {
            add(&pub.out, ack.out.at, ack.out.end);
            add(&sub.out, deliver.out.at, deliver.out.end);
        }
        drain_out(&pub);
        drain_out(&sub);
    }
}

static void open_sink(void) {
    int pub[2], sub[2], size = 1 << 20;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pub) || socketpair(AF_UNIX, SOCK_STREAM, 0, sub)) die("no sockets");
    for (int i = 0; i < 2; i++) {
        setsockopt(pub[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        setsockopt(sub[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    }
    if (!fork()) { close(pub[0]); close(sub[0]); sink(pub[1], sub[1]); }
    close(pub[1]);
    close(sub[1]);
    conns[0] = (struct conn){.fd = pub[0], .is_pub = 1};
    conns[1] = (struct conn){.fd = sub[0]};
    for (int i = 0; i < 2; i++) conns[i].next = calloc(MAX_CHANNELS, sizeof *conns[i].next);
    n_conns = 2;
    n_subs = 1;
}

/* the run */

static u64 received(void) {
    u64 all = 0;
    for (int i = 0; i < n_conns; i++) all += conns[i].received;
    return all;
}

static int all_sent(u64 t, u64 begun) {
    return o.count ? sent >= o.count : t - begun >= (u64)(o.seconds * 1e9);
}

static int due(u64 t, u64 begun) {
    if (all_sent(t, begun)) return 0;
    if (o.rate) return sent < (t - begun) * (double)o.rate / 1e9;
    return 1;
}

static void publish(struct conn *pub, u64 begun) {
    while (published_units - acked_units < (u64)o.window && pub->out.end - pub->out.begin + pub->gathered.end < OUT_BYTES) {
        u64 t = now();
        if (!due(t, begun)) return;
        if (!first_send) first_send = t;
        put(pub, published_units % o.channels, t);
        published_units++;
        sent += o.batch;
    }
}

/* Nanoseconds until the next message is due; at most 50 ms. More wakes than that would be a load of their own. */
static long until_due(u64 begun) {
    u64 most = 50000000, t = now();
    if (!o.rate || all_sent(t, begun) || published_units - acked_units >= (u64)o.window) return most;
    u64 next = begun + (u64)(sent * 1e9 / o.rate);
    return next > t + most ? most : next > t ? next - t : 0;
}

static int over(u64 t, u64 begun) {
    if (n_conns && conns[0].is_pub) {
        int more = o.count ? sent < o.count : t - begun < (u64)(o.seconds * 1e9);
        if (more || acked < sent) return 0;
    }
    u64 wanted = (n_conns && conns[0].is_pub ? sent : o.count) * o.copies;
    return !n_subs || received() >= wanted;
}

static void run(void) {
    struct pollfd *f = calloc(n_conns, sizeof *f);
    u64 begun = now(), progress = 0, at = begun;
    struct conn *pub = conns[0].is_pub ? &conns[0] : NULL;
    for (;;) {
        if (pub) { publish(pub, begun); linkd_seal(pub); }
        for (int i = 0; i < n_conns; i++) {
            drain_out(&conns[i]);
            f[i].fd = conns[i].fd;
            f[i].events = POLLIN | (conns[i].out.begin < conns[i].out.end ? POLLOUT : 0);
        }
        u64 t = now();
        if (over(t, begun)) break;
        if (acked + received() + sent != progress) { progress = acked + received() + sent; at = t; }
        else if (t - at > STALL_SECONDS * 1000000000ull) {
            fprintf(stderr, "load: nothing more came for %d s: sent %llu, acked %llu, received %llu\n", STALL_SECONDS,
                (unsigned long long)sent, (unsigned long long)acked, (unsigned long long)received());
            break;
        }
        struct timespec wait = {0, until_due(begun)};
        ppoll(f, n_conns, &wait, NULL);
        for (int i = 0; i < n_conns; i++)
            if (f[i].revents) fill_in(&conns[i], MSG_DONTWAIT);
    }
    free(f);
}

static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void report(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    double cpu = r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
    u64 begun = first_send ? first_send : first_receive;
    u64 ended = n_subs ? last_receive : last_ack;
    qsort(latencies, n_latencies, sizeof *latencies, compare);
    u64 n = n_latencies ? n_latencies - 1 : 0;
    printf("{\"sent\":%llu,\"acked\":%llu,\"received\":%llu,\"seconds\":%.6f,\"ack_seconds\":%.6f,\"missing\":%llu,"
        "\"repeated\":%llu,\"cpu_seconds\":%.6f,\"p50_us\":%u,\"p99_us\":%u,\"max_us\":%u}\n",
        (unsigned long long)sent, (unsigned long long)acked, (unsigned long long)received(), (ended - begun) / 1e9,
        last_ack > begun ? (last_ack - begun) / 1e9 : 0, (unsigned long long)gaps, (unsigned long long)repeats, cpu,
        latencies[n / 2], latencies[n * 99 / 100], latencies[n]);
}

int main(int argc, char **argv) {
    static const struct option names[] = {{"proto", 1, 0, 'p'}, {"pub", 1, 0, 'P'}, {"sub", 1, 0, 'S'},
        {"size", 1, 0, 's'}, {"batch", 1, 0, 'b'}, {"window", 1, 0, 'w'}, {"rate", 1, 0, 'r'}, {"count", 1, 0, 'n'},
        {"seconds", 1, 0, 't'}, {"channels", 1, 0, 'c'}, {"groups", 1, 0, 'g'},
        {"qos", 1, 0, 'q'}, {"sink", 0, 0, 'k'}, {"earliest", 0, 0, 'e'},
        {"lasting", 0, 0, 'l'}, {"alone", 0, 0, 'a'}, {"shared", 0, 0, 'h'},
        {0}};
    int pub = 0, c;
    char *subs = NULL;
    while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) switch (c) {
    case 'p': o.proto = !strcmp(optarg, "mqtt") ? MQTT : !strcmp(optarg, "nats") ? NATS : LINKD; break;
    case 'P': pub = atoi(optarg); break;
    case 'S': subs = optarg; break;
    case 's': o.size = atoi(optarg); break;
    case 'b': o.batch = atoi(optarg); break;
    case 'w': o.window = atol(optarg); break;
    case 'r': o.rate = atol(optarg); break;
    case 'n': o.count = strtoull(optarg, NULL, 10); break;
    case 't': o.seconds = atof(optarg); break;
    case 'c': o.channels = atoi(optarg); break;
    case 'g': o.groups = atoi(optarg); break;
    case 'q': o.qos = atoi(optarg); break;
    case 'k': o.sink = 1; break;
    case 'e': o.early = 1; break;
    case 'l': o.lasting = 1; break;
    case 'a': o.alone = 1; break;
    case 'h': o.shared = 1; break;
    default: return 2;
    }
    if (o.size < HEAD || o.batch < 1 || o.batch > 60000 || o.channels > MAX_CHANNELS) die("impossible options");
    latencies = malloc(MAX_LATENCIES * sizeof *latencies);
    latencies[0] = 0;
    conns = calloc(1100, sizeof *conns);
    if (o.sink) { o.alone = 1; open_sink(); }
    else {
        for (char *p = subs ? strtok(subs, ",") : NULL; p && n_conns < 1000; p = strtok(NULL, ","))
            open_conn(&conns[1 + n_subs], atoi(p), 0, n_subs), n_subs++, n_conns = 1 + n_subs;
        if (pub) {
            open_conn(&conns[0], pub, 1, 0);
            n_conns = 1 + n_subs;
        } else {
            conns++;
            n_conns = n_subs;
        }
    }
    o.copies = o.shared ? 1 : n_subs;
    run();
    report();
    return 0;
}
