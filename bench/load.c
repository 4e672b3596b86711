// A load generator for OpenAI-style chat completions over HTTP/1.1: one thread, epoll. Prints one line of JSON.
//
//   cc -O2 -o load load.c && ./load --port 8080 --connections 16 --requests 1000 --stream
//
//   --port N              of 127.0.0.1
//   --path P              /v1/chat/completions
//   --model NAME          gpt-4o-mini
//   --header 'k: v'       may be repeated
//   --stream              ask for a stream
//   --prompt-bytes N      size of the request body, 1024; at least 512
//   --connections N       at most this many at once, 16
//   --requests N          stop after so many ...
//   --seconds S           ... or stop starting new ones after so long
//   --rate R              open loop: R arrivals a second, whether or not earlier ones are done; 0: closed loop, where
//                         each connection asks again as soon as it is answered
//   --fixed-arrivals      evenly spaced arrivals instead of a Poisson process
//   --ramp-s S            closed loop: connections begin one after the other over so long, so as not to march in step
//   --warmup-s S          answers to requests that arrived earlier than this are checked but not timed
//   --stall-ms N          slow reader: after the first bytes of an answer read nothing for so long, ...
//   --read-rate B         ... then B bytes a second at most
//   --expect-body SUM     every body must have this sum (16 hex digits, see measure.h)
//   --expect-content SUM  likewise, the text of its content fields alone
//   --timeout-s S         give up if nothing at all happens for so long, 60
//   --seed N              of arrivals and prompts, 1
//
// No two requests are alike: each takes one of 64 texts and carries its own number, so that a cache of prompts or
// decisions in the server is not what is measured. In an open loop time counts from the planned arrival, also while
// all connections are busy; else a slow server would slow the clock that measures it (coordinated omission).
// TTFT is the time to the first character of content (a stream) or to the first byte of the body.
#define _GNU_SOURCE
#include "measure.h"
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define TEXTS 64
#define SLOW_READ 16384  // bytes a slow reader takes at once

static struct {
    int port, connections;
    const char *path, *model;
    char headers[4096];
    bool stream, fixed_arrivals, slow, check_body, check_content;
    size_t prompt_bytes;
    long requests;
    double seconds, rate, ramp_s, warmup_s, timeout_s, read_rate;
    long stall_ms;
    uint64_t body_sum, content_sum, seed;
} options = {.connections = 16, .path = "/v1/chat/completions", .model = "gpt-4o-mini", .prompt_bytes = 1024,
    .timeout_s = 60, .seed = 1};

// xorshift64*, https://doi.org/10.1145/2845077
static uint64_t random_state;
static uint64_t random_bits(void) {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1dull;
}
static double random_unit(void) { return (double)(random_bits() >> 11) / 9007199254740992.0; }

// --- requests --------------------------------------------------------------------------------------------------

static const char *const SENTENCES[] = {
    "Explain how a reverse proxy keeps idle connections to its upstream and what can go wrong when one is closed. ",
    "Write a Python function that merges two sorted lists without using the standard library, with type hints. ",
    "Translate the following paragraph into French and keep the register formal: the committee has met twice. ",
    "Summarise these minutes in three bullet points and name who has to do what before next Tuesday. ",
    "A train leaves at 9:40 and covers 84 km at 63 km/h; when does it arrive, and how late is it if it stops twice? ",
    "Tell a short story about a lighthouse keeper who finds a letter that was never meant for her. ",
    "Which of these reviews are positive, which negative, and which mention the delivery? Answer as a table. ",
    "Give me ten ideas for a school project on rivers that needs nothing but paper, string and water. ",
    "What is the capital of Burkina Faso, and since when has it been called so? ",
    "Rewrite this sentence so that it sounds less harsh: your report was late again and nobody could use it. ",
    "Draft an e-mail to a landlord about a broken boiler; be polite, be firm, and mention the date of the first call. ",
    "def total(rows): return sum(r.price * r.count for r in rows if not r.void)  # why does this raise on None? ",
    "Compare the two offers below by cost over three years, notice period and what happens if we grow. ",
    "You are the captain of a small ship in a storm; the player asks you whether they should jump. ",
    "Find the names of people and places in this text and return them as JSON with their positions. ",
    "List the steps to bleed a radiator, and say what tools are needed and what to do if no water comes. ",
};
#define SENTENCE_COUNT (sizeof SENTENCES / sizeof *SENTENCES)

static const char *const SYSTEMS[] = {
    "You are a helpful assistant. Answer concisely, and say so when you do not know.",
    "You answer customers of a railway company. Be friendly. Never promise refunds.",
    "You are a careful programmer. Prefer the standard library. Explain nothing unless asked.",
    "You classify and extract. Answer with JSON only.",
};

// A whole request; the ten digits of the request's number are written over the text at `number_at`.
struct text {
    char *bytes;
    size_t length, number_at;
};
static struct text texts[TEXTS];

static size_t write_body(char *out, int index, char **number_at) {
    char *p = out;
    p += sprintf(p, "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"%s\"},{\"role\":\"user\",\"content\":\"[",
        options.model, SYSTEMS[index % 4]);
    *number_at = p;
    p += sprintf(p, "0000000000] ");
    const char tail_format[] = "\"}],\"temperature\":0.7,\"user\":\"user-1234\",\"stream\":%s}";
    char tail[128];
    size_t tail_length = (size_t)sprintf(tail, tail_format, options.stream ? "true" : "false");
    for (char *end = out + options.prompt_bytes - tail_length; p < end;) {
        const char *sentence = SENTENCES[random_bits() % SENTENCE_COUNT];
        size_t length = strlen(sentence), room = (size_t)(end - p);
        if (length > room) length = room;
        memcpy(p, sentence, length);
        p += length;
    }
    memcpy(p, tail, tail_length);
    return (size_t)(p + tail_length - out);
}

static void build_texts(void) {
    for (int i = 0; i < TEXTS; i++) {
        char *body = malloc(options.prompt_bytes + 1024), *number;
        size_t body_length = write_body(body, i, &number);
        char *bytes = malloc(body_length + sizeof options.headers + 1024);
        size_t head_length = (size_t)sprintf(bytes,
            "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: */*\r\nAccept-Encoding: identity\r\n"
            "User-Agent: OpenAI/Python 2.8.0\r\nContent-Type: application/json\r\n%sContent-Length: %zu\r\n\r\n",
            options.path, options.port, options.headers, body_length);
        memcpy(bytes + head_length, body, body_length);
        texts[i] = (struct text){bytes, head_length + body_length, head_length + (size_t)(number - body)};
        free(body);
    }
}

static void write_number(struct text *text, long number) {
    char digits[24];
    sprintf(digits, "%010ld", number);
    memcpy(text->bytes + text->number_at, digits, 10);
}

// --- connections -----------------------------------------------------------------------------------------------

enum framing { CHUNK_SIZE, CHUNK_EXTENSION, CHUNK_DATA, CHUNK_END, TRAILER_START, TRAILER, BY_LENGTH, BY_CLOSE };

struct connection {
    int fd;  // -1: not connected
    bool busy, slow_pause;
    uint64_t arrived, first_content, read_again;  // ns; read_again: when a slow reader may go on
    char *unsent;                                 // the rest of a request that did not fit into the socket at once
    size_t unsent_length, unsent_sent;
    char head[8192];
    size_t head_length;
    bool has_head, close_after;
    int status;
    enum framing framing;
    size_t left;  // of the chunk, or of the body
    // the body as it is read
    uint64_t body_sum, content_sum;
    int content_match, done_match, done_count;
    bool in_content;
};

static int poller;
static struct connection *connections, **idle;
static int idle_count;

static struct {
    long count, capacity;
    uint64_t *ttft, *total;
} times;

static struct {
    long started, finished, reconnects;
    long status, early_close, wrong_body, wrong_content, wrong_done, stuck;
    uint64_t body_bytes;
    int shown;
} seen;

static uint64_t began;
static uint64_t planned;  // when the next request arrives that is not the answer to an answer
static int ramped;        // connections of a closed loop that have begun

static void show(const char *what, const char *detail, size_t length) {
    if (seen.shown++ >= 3) return;
    fprintf(stderr, "load: %s: %.*s\n", what, (int)(length > 300 ? 300 : length), detail);
}

static void watch(struct connection *c, int operation) {
    uint32_t events = (c->slow_pause ? 0 : EPOLLIN) | (c->unsent ? EPOLLOUT : 0);
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(poller, operation, c->fd, &event);
}

static void connect_to_server(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1, small = 64 * 1024;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (options.slow) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    if (c->fd < 0 || connect(c->fd, (void *)&address, sizeof address)) {
        perror("load: cannot connect");
        exit(2);
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->slow_pause = false;
    watch(c, EPOLL_CTL_ADD);
}

static void disconnect(struct connection *c) {
    close(c->fd);
    c->fd = -1;
    free(c->unsent);
    c->unsent = NULL;
    seen.reconnects++;
}

static void keep_unsent(struct connection *c, const char *bytes, size_t length) {
    c->unsent = malloc(length);
    memcpy(c->unsent, bytes, length);
    c->unsent_length = length;
    c->unsent_sent = 0;
    watch(c, EPOLL_CTL_MOD);
}

static void send_unsent(struct connection *c) {
    ssize_t n = send(c->fd, c->unsent + c->unsent_sent, c->unsent_length - c->unsent_sent, MSG_NOSIGNAL);
    if (n > 0) c->unsent_sent += (size_t)n;
    if ((n < 0 && errno == EAGAIN) || c->unsent_sent < c->unsent_length) return;
    free(c->unsent);
    c->unsent = NULL;
    watch(c, EPOLL_CTL_MOD);
}

static void start_request(struct connection *c, uint64_t arrived) {
    struct text *text = &texts[random_bits() % TEXTS];
    write_number(text, seen.started++);
    c->busy = true;
    c->arrived = arrived;
    c->first_content = 0;
    c->head_length = 0;
    c->has_head = c->close_after = c->in_content = false;
    c->body_sum = c->content_sum = SUM_START;
    c->content_match = c->done_match = c->done_count = 0;
    if (c->fd < 0) connect_to_server(c);
    ssize_t n = send(c->fd, text->bytes, text->length, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) {  // the server closed an idle connection
        disconnect(c);
        connect_to_server(c);
        n = send(c->fd, text->bytes, text->length, MSG_NOSIGNAL);
    }
    if (n < 0) n = 0;
    if ((size_t)n < text->length) keep_unsent(c, text->bytes + n, text->length - (size_t)n);
}

static bool more_to_start(uint64_t now) {
    if (options.requests) return seen.started < options.requests;
    return (double)(now - began) < options.seconds * 1e9;
}

static void note_times(struct connection *c, uint64_t now) {
    if ((double)(c->arrived - began) < options.warmup_s * 1e9) return;
    if (times.count == times.capacity) {
        times.capacity = times.capacity ? times.capacity * 2 : 65536;
        times.ttft = realloc(times.ttft, (size_t)times.capacity * sizeof *times.ttft);
        times.total = realloc(times.total, (size_t)times.capacity * sizeof *times.total);
    }
    times.ttft[times.count] = (c->first_content ? c->first_content : now) - c->arrived;
    times.total[times.count++] = now - c->arrived;
}

static void check_answer(struct connection *c) {
    seen.status += c->status != 200;
    if (c->status != 200) return;
    seen.wrong_body += options.check_body && c->body_sum != options.body_sum;
    seen.wrong_content += options.check_content && c->content_sum != options.content_sum;
    seen.wrong_done += options.stream && c->done_count != 1;
}

static void finish_request(struct connection *c, bool complete) {
    uint64_t now = now_ns();
    c->busy = false;
    seen.finished++;
    if (complete) {
        check_answer(c);
        note_times(c, now);
    } else {
        seen.early_close++;
        show("closed early", c->head, c->head_length);
    }
    if (c->close_after || !complete) disconnect(c);
    if (options.rate == 0 && more_to_start(now)) start_request(c, now);
    else idle[idle_count++] = c;
}

// --- answers ---------------------------------------------------------------------------------------------------

// Finds `"content":"..."` (a space may follow the colon) and sums what is between the quotes; the mock's content has
// no escapes. Finds `[DONE]`, which it does not contain either.
static void scan_byte(struct connection *c, unsigned char byte) {
    static const char content[] = "\"content\":\"", done[] = "[DONE]";
    if (c->in_content) {
        if (byte == '"') {
            c->in_content = false;
            return;
        }
        c->content_sum = sum_byte(c->content_sum, byte);
        if (c->first_content == 0) c->first_content = now_ns();
        return;
    }
    if (byte == (unsigned char)content[c->content_match]) {
        if (content[++c->content_match] == 0) {
            c->in_content = true;
            c->content_match = 0;
        }
    } else if (!(byte == ' ' && c->content_match == 10)) {
        c->content_match = byte == '"';
    }
    c->done_match = byte == (unsigned char)done[c->done_match] ? c->done_match + 1 : byte == '[';
    if (done[c->done_match] == 0) {
        c->done_count++;
        c->done_match = 0;
    }
}

static void read_body(struct connection *c, const char *bytes, size_t length) {
    seen.body_bytes += length;
    if (c->status != 200) show("bad status", bytes, length);
    if (!options.stream && c->first_content == 0) c->first_content = now_ns();
    if (options.check_body) c->body_sum = sum_bytes(c->body_sum, bytes, length);
    for (size_t i = 0; i < length; i++) scan_byte(c, (unsigned char)bytes[i]);
}

static size_t hex_digit(char digit) { return (size_t)(digit <= '9' ? digit - '0' : (digit | 32) - 'a' + 10); }

// RFC 9112 §7.1. Returns true at the end of the body.
static bool read_chunked(struct connection *c, const char *p, const char *end) {
    while (p < end) {
        switch (c->framing) {
        case CHUNK_SIZE:
            if (*p == '\n') c->framing = c->left ? CHUNK_DATA : TRAILER_START;
            else if (*p == ';') c->framing = CHUNK_EXTENSION;
            else if (*p != '\r' && *p != ' ') c->left = c->left * 16 + hex_digit(*p);
            p++;
            break;
        case CHUNK_EXTENSION:
            if (*p++ == '\n') c->framing = c->left ? CHUNK_DATA : TRAILER_START;
            break;
        case CHUNK_DATA: {
            size_t n = (size_t)(end - p) < c->left ? (size_t)(end - p) : c->left;
            read_body(c, p, n);
            p += n;
            if ((c->left -= n) == 0) c->framing = CHUNK_END;
            break;
        }
        case CHUNK_END:
            if (*p++ == '\n') c->framing = CHUNK_SIZE;
            break;
        case TRAILER_START:
            if (*p == '\n') return true;
            if (*p++ != '\r') c->framing = TRAILER;
            break;
        default:
            if (*p++ == '\n') c->framing = TRAILER_START;
        }
    }
    return false;
}

static bool read_framed(struct connection *c, const char *p, size_t length) {
    if (c->framing < BY_LENGTH) return read_chunked(c, p, p + length);
    if (length > 0) read_body(c, p, length);
    if (c->framing == BY_CLOSE) return false;
    c->left -= length < c->left ? length : c->left;
    return c->left == 0;
}

// Takes bytes until the head is whole. Returns how many were the head's, or -1 if more are needed.
static ssize_t read_head(struct connection *c, const char *p, size_t length) {
    size_t before = c->head_length, room = sizeof c->head - 1 - before, taken = length < room ? length : room;
    memcpy(c->head + before, p, taken);
    c->head_length += taken;
    c->head[c->head_length] = 0;
    char *blank = strstr(c->head, "\r\n\r\n");
    if (blank == NULL) return -1;
    blank[2] = 0;
    c->has_head = true;
    c->head_length = (size_t)(blank - c->head) + 2;
    c->status = atoi(c->head + 9);
    const char *size = strcasestr(c->head, "\ncontent-length:");
    if (strcasestr(c->head, "\ntransfer-encoding: chunked")) c->framing = CHUNK_SIZE;
    else c->framing = size ? BY_LENGTH : BY_CLOSE;
    c->left = c->framing == BY_LENGTH ? strtoul(size + 16, NULL, 10) : 0;
    c->close_after = c->framing == BY_CLOSE || strcasestr(c->head, "\nconnection: close") != NULL;
    return (ssize_t)(c->head_length + 2 - before);
}

static void pause_slow_reader(struct connection *c, size_t received) {
    bool first = c->read_again < c->arrived;
    double pause_s = first ? (double)options.stall_ms / 1e3 : options.read_rate ? (double)received / options.read_rate : 0;
    c->read_again = now_ns() + (uint64_t)(pause_s * 1e9);
    c->slow_pause = true;
    watch(c, EPOLL_CTL_MOD);
}

static void receive(struct connection *c) {
    static char buffer[262144];
    ssize_t n = recv(c->fd, buffer, options.slow ? SLOW_READ : sizeof buffer, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (!c->busy) {  // an idle connection was closed, or the server said more than it should
        if (n > 0) seen.wrong_body++;
        disconnect(c);
        return;
    }
    if (n <= 0) {
        finish_request(c, c->has_head && c->framing == BY_CLOSE);
        return;
    }
    ssize_t head = 0;
    if (!c->has_head && (head = read_head(c, buffer, (size_t)n)) < 0) return;
    if (read_framed(c, buffer + head, (size_t)(n - head))) finish_request(c, true);
    else if (options.slow) pause_slow_reader(c, (size_t)n);
}

// --- the loop --------------------------------------------------------------------------------------------------

static bool more_planned(void) {
    return (options.rate > 0 || ramped < options.connections) && more_to_start(planned);
}

static void plan_next_arrival(void) {
    double gap_s = options.ramp_s / options.connections;
    if (options.rate > 0) gap_s = (options.fixed_arrivals ? 1 : -log(1 - random_unit())) / options.rate;
    planned += (uint64_t)(gap_s * 1e9);
    ramped++;
}

static void start_planned_requests(uint64_t now) {
    while (idle_count > 0 && planned <= now && more_planned()) {
        start_request(idle[--idle_count], options.rate > 0 ? planned : now);
        plan_next_arrival();
    }
}

static void resume_slow_readers(uint64_t now) {
    for (int i = 0; options.slow && i < options.connections; i++) {
        struct connection *c = &connections[i];
        if (!c->slow_pause || c->read_again > now) continue;
        c->slow_pause = false;
        watch(c, EPOLL_CTL_MOD);
    }
}

// When something has to be done although no socket is ready, ns; at most one second from now.
static uint64_t next_wake(uint64_t now) {
    uint64_t wake = now + NS_PER_S;
    if (idle_count > 0 && more_planned() && planned < wake) wake = planned;
    for (int i = 0; options.slow && i < options.connections; i++)
        if (connections[i].slow_pause && connections[i].read_again < wake) wake = connections[i].read_again;
    return wake;
}

static bool finished(void) { return idle_count == options.connections && !more_planned(); }

static void run(void) {
    static struct epoll_event events[512];
    uint64_t last_event = now_ns();
    for (uint64_t now = last_event; !finished(); now = now_ns()) {
        start_planned_requests(now);
        resume_slow_readers(now);
        uint64_t wake = next_wake(now), pause_ns = wake > now ? wake - now : 0;
        struct timespec pause = {.tv_sec = (time_t)(pause_ns / NS_PER_S), .tv_nsec = (long)(pause_ns % NS_PER_S)};
        int ready = epoll_pwait2(poller, events, 512, &pause, NULL);
        if (ready > 0 || pause_ns < NS_PER_S) last_event = now_ns();
        else if ((double)(now_ns() - last_event) > options.timeout_s * 1e9) {
            seen.stuck = options.connections - idle_count;
            return;
        }
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if ((events[i].events & EPOLLOUT) && c->unsent) send_unsent(c);
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
        }
    }
}

// --- the report ------------------------------------------------------------------------------------------------

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void print_percentiles(const char *name, uint64_t *values) {
    static const struct { const char *name; double share; } wanted[] = {
        {"p50", .5}, {"p90", .9}, {"p95", .95}, {"p99", .99}, {"max", 1}};
    double sum = 0;
    qsort(values, (size_t)times.count, sizeof *values, compare);
    for (long i = 0; i < times.count; i++) sum += (double)values[i];
    printf("\"%s_us\":{\"mean\":%.1f", name, times.count ? sum / (double)times.count / 1e3 : 0);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        long rank = (long)ceil(wanted[i].share * (double)times.count) - 1;  // nearest rank
        printf(",\"%s\":%.1f", wanted[i].name, times.count ? (double)values[rank < 0 ? 0 : rank] / 1e3 : 0);
    }
    printf("},");
}

static void print_report(void) {
    double seconds = (double)(now_ns() - began) / 1e9;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                 (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    long errors = seen.status + seen.early_close + seen.wrong_body + seen.wrong_content + seen.wrong_done + seen.stuck;
    printf("{\"requests\":%ld,\"errors\":%ld,", seen.finished, errors);
    printf("\"error_kinds\":{\"status\":%ld,\"early_close\":%ld,\"wrong_body\":%ld,\"wrong_content\":%ld,\"wrong_done\":%ld,"
           "\"stuck\":%ld},", seen.status, seen.early_close, seen.wrong_body, seen.wrong_content, seen.wrong_done, seen.stuck);
    printf("\"reconnects\":%ld,\"seconds\":%.4f,\"per_second\":%.1f,\"timed\":%ld,", seen.reconnects, seconds,
        (double)seen.finished / seconds, times.count);
    print_percentiles("ttft", times.ttft);
    print_percentiles("total", times.total);
    printf("\"body_bytes\":%lu,\"own_cpu_s\":%.3f}\n", seen.body_bytes, cpu);
}

// --- options ---------------------------------------------------------------------------------------------------

static void add_header(const char *header) {
    if (strlen(options.headers) + strlen(header) + 3 > sizeof options.headers) {
        fprintf(stderr, "load: headers too long\n");
        exit(2);
    }
    strcat(strcat(options.headers, header), "\r\n");
}

static void read_options(int argc, char **argv) {
    static const struct option known[] = {{"port", 1, 0, 'p'}, {"path", 1, 0, 'P'}, {"model", 1, 0, 'm'},
        {"header", 1, 0, 'H'}, {"stream", 0, 0, 's'}, {"prompt-bytes", 1, 0, 'b'}, {"connections", 1, 0, 'c'},
        {"requests", 1, 0, 'n'}, {"seconds", 1, 0, 't'}, {"rate", 1, 0, 'r'}, {"fixed-arrivals", 0, 0, 'f'}, {"ramp-s", 1, 0, 'a'},
        {"warmup-s", 1, 0, 'w'}, {"stall-ms", 1, 0, 'S'}, {"read-rate", 1, 0, 'R'}, {"expect-body", 1, 0, 'B'},
        {"expect-content", 1, 0, 'C'}, {"timeout-s", 1, 0, 'T'}, {"seed", 1, 0, 'x'}, {0, 0, 0, 0}};
    for (int option; (option = getopt_long_only(argc, argv, "", known, NULL)) != -1;) switch (option) {
        case 'p': options.port = atoi(optarg); break;
        case 'P': options.path = optarg; break;
        case 'm': options.model = optarg; break;
        case 'H': add_header(optarg); break;
        case 's': options.stream = true; break;
        case 'b': options.prompt_bytes = strtoul(optarg, NULL, 10); break;
        case 'c': options.connections = atoi(optarg); break;
        case 'n': options.requests = atol(optarg); break;
        case 't': options.seconds = atof(optarg); break;
        case 'r': options.rate = atof(optarg); break;
        case 'f': options.fixed_arrivals = true; break;
        case 'a': options.ramp_s = atof(optarg); break;
        case 'w': options.warmup_s = atof(optarg); break;
        case 'S': options.stall_ms = atol(optarg); options.slow = true; break;
        case 'R': options.read_rate = atof(optarg); options.slow = true; break;
        case 'B': options.body_sum = strtoull(optarg, NULL, 16); options.check_body = true; break;
        case 'C': options.content_sum = strtoull(optarg, NULL, 16); options.check_content = true; break;
        case 'T': options.timeout_s = atof(optarg); break;
        case 'x': options.seed = strtoull(optarg, NULL, 10); break;
        default: exit(2);
    }
    if (!options.port || options.connections < 1 || options.prompt_bytes < 512 || !(options.requests || options.seconds > 0)) {
        fprintf(stderr, "load: needs --port, --requests or --seconds, --connections >= 1, --prompt-bytes >= 512\n");
        exit(2);
    }
    random_state = options.seed * 0x9e3779b97f4a7c15ull + 1;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1000);    // ns; the default of 50 µs would show in the arrivals
    prctl(PR_SET_PDEATHSIG, SIGTERM);  // never outlive the bench
    read_options(argc, argv);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    build_texts();
    poller = epoll_create1(0);
    connections = calloc((size_t)options.connections, sizeof *connections);
    idle = calloc((size_t)options.connections, sizeof *idle);
    began = planned = now_ns();
    for (int i = 0; i < options.connections; i++) {
        connections[i].fd = -1;
        idle[idle_count++] = &connections[i];
    }
    run();
    print_report();
    return 0;
}
