// A mock OpenAI upstream: one thread, epoll, nothing but prepared bytes.
//
//   cc -O2 -o mock mock.c && ./mock 9000        (127.0.0.1 only; 0 picks a port and prints it)
//
//   GET  /__set?chunks=10&gap_us=0&first_us=0&chunk_bytes=6&separate=0
//        chunks       events before [DONE]: one with the role, chunks - 2 with content, one with the finish reason
//        gap_us       time between two events; 0 does not wait, and then
//        separate     0 writes the whole stream at once, 1 writes event by event
//        first_us     time from the request to the first byte of the answer
//        chunk_bytes  content of one event
//        Answers with the sums over what a client must receive (see measure.h).
//   GET  /__stats     completions so far and the connections they came on, what is open now, streams left early.
//   POST .../completions   a stream if the body says "stream":true, else one JSON answer. As OpenAI's API does,
//        a usage event precedes [DONE] only if the body says "include_usage":true.
//   GET  .../models   one model.
//
// The role and the first token go out in one write, as they do at OpenAI. Every later event of a paced stream is one
// write. Its second event comes after a random part of the gap, so that parallel streams do not fall into step.
#define _GNU_SOURCE
#include "measure.h"
#include <errno.h>
#include <fcntl.h>
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

// --- answers ---------------------------------------------------------------------------------------------------

// An answer, ready to send. A paced one goes out in steps; ends[i] is where step i ends.
struct answer {
    char *bytes;
    size_t length, capacity;
    size_t *ends;
    long steps;
    int users;             // connections sending it, plus one while it is the current one
    uint64_t body_sum;     // over the body as the client sees it, without HTTP's own framing
    uint64_t content_sum;  // over the text of its content fields alone
};

static struct {
    long chunks, gap_us, separate, first_us, chunk_bytes;
} settings = {.chunks = 10, .chunk_bytes = 6};

static struct {
    unsigned long connections, requests, open, streaming, left_early;
} stats;

static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    "x-request-id: req_0123456789abcdef\r\ntransfer-encoding: chunked\r\n\r\n";
#define EVENT_START                                                                                          \
    "data: {\"id\":\"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWx\",\"object\":\"chat.completion.chunk\","              \
    "\"created\":1790000000,\"model\":\"gpt-4o-mini\",\"choices\":["
static const char ANSWER_START[] =
    "{\"id\":\"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWx\",\"object\":\"chat.completion\",\"created\":1790000000,"
    "\"model\":\"gpt-4o-mini\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"";
static const char ANSWER_TEXT[] =
    "A proxy keeps idle connections so that the next request need not wait for a handshake. It must notice when "
    "the other side closes one, and may retry what was surely not received.";
static const char ANSWER_END[] =
    "\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":123,"
    "\"completion_tokens\":40,\"total_tokens\":163,\"prompt_tokens_details\":{\"cached_tokens\":0},"
    "\"completion_tokens_details\":{\"reasoning_tokens\":0}},\"service_tier\":\"default\","
    "\"system_fingerprint\":\"fp_0123456789\"}";
static const char MODELS[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"gpt-4o-mini\",\"object\":\"model\",\"created\":1790000000,"
    "\"owned_by\":\"mock\"}]}";

static struct answer *plain_stream, *usage_stream, *json_answer;

static struct answer *new_answer(void) {
    struct answer *a = calloc(1, sizeof *a);
    a->users = 1;
    a->body_sum = a->content_sum = SUM_START;
    return a;
}

static void release_answer(struct answer *a) {
    if (a == NULL || --a->users > 0) return;
    free(a->bytes);
    free(a->ends);
    free(a);
}

static void append(struct answer *a, const char *bytes, size_t length) {
    if (a->length + length > a->capacity) {
        a->capacity = (a->length + length) * 2;
        a->bytes = realloc(a->bytes, a->capacity);
    }
    memcpy(a->bytes + a->length, bytes, length);
    a->length += length;
}

static void end_step(struct answer *a) {
    a->ends = realloc(a->ends, (size_t)(a->steps + 1) * sizeof *a->ends);
    a->ends[a->steps++] = a->length;
}

// One event as one HTTP chunk, because that is how upstreams flush.
static void append_event(struct answer *a, const char *event, size_t length) {
    char size_line[24];
    append(a, size_line, (size_t)sprintf(size_line, "%zx\r\n", length));
    append(a, event, length);
    append(a, "\r\n", 2);
    a->body_sum = sum_bytes(a->body_sum, event, length);
}

// Content that differs from event to event (a gateway may cut what repeats itself), free of JSON escapes.
static void append_token(struct answer *a, long number, char *event) {
    size_t content = (size_t)settings.chunk_bytes;
    char *p = event + sprintf(event, "%s{\"index\":0,\"delta\":{\"content\":\"", EVENT_START);
    char digits[24];
    int have = sprintf(digits, "%05ld", number);
    for (size_t i = 0; i < content; i++) p[i] = i == 0 ? ' ' : i <= (size_t)have ? digits[i - 1] : "etaoin"[i % 6];
    a->content_sum = sum_bytes(a->content_sum, p, content);
    p += content;
    p += sprintf(p, "\"},\"finish_reason\":null}]}\n\n");
    append_event(a, event, (size_t)(p - event));
}

static struct answer *build_stream(bool with_usage) {
    static const char role[] = EVENT_START
        "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n";
    static const char finish[] = EVENT_START "{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    static const char usage[] = EVENT_START
        "],\"usage\":{\"prompt_tokens\":123,\"completion_tokens\":40,\"total_tokens\":163}}\n\n";
    static const char done[] = "data: [DONE]\n\n";
    struct answer *a = new_answer();
    char *event = malloc((size_t)settings.chunk_bytes + 1024);
    append(a, STREAM_HEAD, strlen(STREAM_HEAD));
    append_event(a, role, strlen(role));
    for (long i = 0; i < settings.chunks - 2; i++) {
        append_token(a, i, event);
        end_step(a);
    }
    append_event(a, finish, strlen(finish));
    if (with_usage) append_event(a, usage, strlen(usage));
    append_event(a, done, strlen(done));
    append(a, "0\r\n\r\n", 5);
    end_step(a);
    free(event);
    return a;
}

static struct answer *build_json(const char *status, const char *body, size_t length) {
    struct answer *a = new_answer();
    char head[256];
    append(a, head, (size_t)sprintf(head,
        "HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n"
        "x-request-id: req_0123456789abcdef\r\n\r\n", status, length));
    append(a, body, length);
    a->body_sum = sum_bytes(SUM_START, body, length);
    end_step(a);
    return a;
}

static struct answer *build_completion(void) {
    char body[2048];
    int length = sprintf(body, "%s%s%s", ANSWER_START, ANSWER_TEXT, ANSWER_END);
    struct answer *a = build_json("200 OK", body, (size_t)length);
    a->content_sum = sum_bytes(SUM_START, ANSWER_TEXT, strlen(ANSWER_TEXT));
    return a;
}

static void rebuild_streams(void) {
    release_answer(plain_stream);
    release_answer(usage_stream);
    plain_stream = build_stream(false);
    usage_stream = build_stream(true);
}

// --- connections and their timers ------------------------------------------------------------------------------

struct connection {
    int fd;
    char *in;  // what was received and not yet answered
    size_t in_length, in_capacity;
    size_t head_length, request_length;  // of the request at the start of `in`; 0 while unknown
    struct answer *answer;               // being sent; NULL while waiting for a request
    size_t sent, allowed;                // of answer->bytes
    long step;
    bool is_stream, wants_write, was_used;
    uint64_t due;    // when the next step may go
    int timer_slot;  // in the heap below, -1 if none
};

static int poller;

// A binary heap on `due`.
static struct connection **timers;
static int timer_count, timer_capacity;

static void place(int slot, struct connection *c) {
    timers[slot] = c;
    c->timer_slot = slot;
}

static void sift_up(int slot) {
    struct connection *c = timers[slot];
    for (; slot > 0 && timers[(slot - 1) / 2]->due > c->due; slot = (slot - 1) / 2) place(slot, timers[(slot - 1) / 2]);
    place(slot, c);
}

static void sift_down(int slot) {
    struct connection *c = timers[slot];
    for (int child; (child = 2 * slot + 1) < timer_count; slot = child) {
        if (child + 1 < timer_count && timers[child + 1]->due < timers[child]->due) child++;
        if (timers[child]->due >= c->due) break;
        place(slot, timers[child]);
    }
    place(slot, c);
}

static void set_timer(struct connection *c, uint64_t due) {
    if (timer_count == timer_capacity) {
        timer_capacity = timer_capacity ? timer_capacity * 2 : 1024;
        timers = realloc(timers, (size_t)timer_capacity * sizeof *timers);
    }
    c->due = due;
    place(timer_count++, c);
    sift_up(c->timer_slot);
}

static void clear_timer(struct connection *c) {
    int slot = c->timer_slot;
    if (slot < 0) return;
    c->timer_slot = -1;
    struct connection *last = timers[--timer_count];
    if (last == c) return;
    place(slot, last);
    sift_up(slot);
    sift_down(last->timer_slot);
}

static void close_connection(struct connection *c) {
    if (c->answer != NULL && c->is_stream) {
        stats.streaming--;
        stats.left_early++;
    }
    clear_timer(c);
    release_answer(c->answer);
    close(c->fd);
    free(c->in);
    free(c);
    stats.open--;
}

static void want_write(struct connection *c, bool wanted) {
    if (wanted == c->wants_write) return;
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
    c->wants_write = wanted;
}

// Sends what is allowed. Returns false if the connection is gone (and freed).
static bool flush(struct connection *c) {
    while (c->sent < c->allowed) {
        ssize_t n = send(c->fd, c->answer->bytes + c->sent, c->allowed - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            want_write(c, true);
            return true;
        }
        if (n < 0) {
            close_connection(c);
            return false;
        }
        c->sent += (size_t)n;
    }
    want_write(c, false);
    if (c->sent == c->answer->length) {
        stats.streaming -= c->is_stream;
        release_answer(c->answer);
        c->answer = NULL;
    }
    return true;
}

// Sends what is left of an answer that is not paced, one write for each step.
static bool write_separately(struct connection *c) {
    struct answer *a = c->answer;
    for (bool last = false; !last;) {
        last = c->step + 1 == a->steps;
        c->allowed = a->ends[c->step++];
        if (!flush(c)) return false;
    }
    return true;
}

// Lets the next step go: all of it if the answer is not paced.
static bool advance(struct connection *c) {
    struct answer *a = c->answer;
    uint64_t gap = (uint64_t)settings.gap_us * NS_PER_US;
    if (c->is_stream && gap == 0 && settings.separate) return write_separately(c);
    if (!c->is_stream || gap == 0) {
        c->step = a->steps;
        c->allowed = a->length;
        return flush(c);
    }
    uint64_t pause = c->step == 0 ? 1 + (uint64_t)rand() % gap : gap;
    c->allowed = a->ends[c->step++];
    if (c->step < a->steps) set_timer(c, c->due + pause);
    return flush(c);
}

static bool start_answer(struct connection *c, struct answer *a, bool is_stream, uint64_t delay) {
    a->users++;
    c->answer = a;
    c->is_stream = is_stream;
    stats.streaming += is_stream;
    c->sent = c->allowed = 0;
    c->step = 0;
    c->due = now_ns() + delay;
    if (delay == 0) return advance(c);
    set_timer(c, c->due);
    return true;
}

// --- requests --------------------------------------------------------------------------------------------------

static const char *find(const char *in, size_t length, const char *what) {
    return memmem(in, length, what, strlen(what));
}

// Whether `"name": true` stands anywhere in the JSON; prompts of the bench do not contain such text.
static bool has_true(const char *json, size_t length, const char *quoted_name) {
    const char *end = json + length, *p = find(json, length, quoted_name);
    if (p == NULL) return false;
    p += strlen(quoted_name);
    while (p < end && (*p == ':' || *p == ' ')) p++;
    return end - p >= 4 && memcmp(p, "true", 4) == 0;
}

static void read_setting(const char *query, const char *name, long *value) {
    const char *p = strstr(query, name);
    if (p != NULL) *value = atol(p + strlen(name));
}

static bool answer_text(struct connection *c, const char *status, const char *text) {
    struct answer *a = build_json(status, text, strlen(text));
    bool alive = start_answer(c, a, false, 0);
    release_answer(a);
    return alive;
}

static bool answer_settings(struct connection *c, const char *query) {
    read_setting(query, "chunks=", &settings.chunks);
    read_setting(query, "gap_us=", &settings.gap_us);
    read_setting(query, "separate=", &settings.separate);
    read_setting(query, "first_us=", &settings.first_us);
    read_setting(query, "chunk_bytes=", &settings.chunk_bytes);
    if (settings.chunks < 3 || settings.chunk_bytes < 1 || settings.gap_us < 0 || settings.first_us < 0)
        return answer_text(c, "400 Bad Request", "{\"error\":\"chunks >= 3, chunk_bytes >= 1, times >= 0\"}");
    rebuild_streams();
    char text[512];
    sprintf(text,
        "{\"stream_body_sum\":\"%016lx\",\"stream_content_sum\":\"%016lx\",\"usage_body_sum\":\"%016lx\","
        "\"json_body_sum\":\"%016lx\",\"json_content_sum\":\"%016lx\",\"stream_bytes\":%zu}",
        plain_stream->body_sum, plain_stream->content_sum, usage_stream->body_sum, json_answer->body_sum,
        json_answer->content_sum, plain_stream->length);
    return answer_text(c, "200 OK", text);
}

static bool answer_stats(struct connection *c) {
    char text[256];
    sprintf(text, "{\"connections\":%lu,\"requests\":%lu,\"open\":%lu,\"streaming\":%lu,\"left_early\":%lu}",
        stats.connections, stats.requests, stats.open, stats.streaming, stats.left_early);
    return answer_text(c, "200 OK", text);
}

static bool answer_completion(struct connection *c, const char *body, size_t length) {
    stats.requests++;
    stats.connections += !c->was_used;
    c->was_used = true;
    uint64_t delay = (uint64_t)settings.first_us * NS_PER_US;
    if (!has_true(body, length, "\"stream\"")) return start_answer(c, json_answer, false, delay);
    bool usage = has_true(body, length, "\"include_usage\"");
    return start_answer(c, usage ? usage_stream : plain_stream, true, delay);
}

static bool answer_request(struct connection *c) {
    const char *line = c->in, *body = c->in + c->head_length;
    char *path = memchr(c->in, ' ', c->head_length);
    char *path_end = path ? memchr(path + 1, ' ', c->head_length - (size_t)(path + 1 - c->in)) : NULL;
    if (path_end == NULL) return answer_text(c, "400 Bad Request", "{}");
    path++;
    *path_end = 0;
    if (strncmp(path, "/__set", 6) == 0) return answer_settings(c, path);
    if (strncmp(path, "/__stats", 8) == 0) return answer_stats(c);
    if (strncmp(line, "POST", 4) == 0 && strstr(path, "/completions"))
        return answer_completion(c, body, c->request_length - c->head_length);
    return answer_text(c, "200 OK", strstr(path, "/models") ? MODELS : "{}");
}

// The value of a header of the request at the start of `in`, or NULL. Reads up to the blank line.
static const char *header(const struct connection *c, const char *name) {
    const char *end = c->in + c->head_length, *line = memchr(c->in, '\n', c->head_length);
    for (; line != NULL && line + 1 < end; line = memchr(line, '\n', (size_t)(end - line))) {
        line++;
        if (strncasecmp(line, name, strlen(name)) == 0) return line + strlen(name);
    }
    return NULL;
}

// Finds where the request at the start of `in` ends. Returns whether all of it is there.
static bool has_whole_request(struct connection *c) {
    if (c->head_length == 0) {
        const char *blank = find(c->in, c->in_length, "\r\n\r\n");
        if (blank == NULL) return false;
        c->head_length = (size_t)(blank - c->in) + 4;
        const char *value = header(c, "content-length:");
        c->request_length = c->head_length + (value ? strtoul(value, NULL, 10) : 0);
        if (header(c, "transfer-encoding:")) c->request_length = 0;  // chunked: ends where its last chunk does
        if (header(c, "expect:")) (void)!send(c->fd, "HTTP/1.1 100 Continue\r\n\r\n", 25, MSG_NOSIGNAL);
    }
    if (c->request_length == 0) {
        const char *last = find(c->in + c->head_length, c->in_length - c->head_length, "0\r\n\r\n");
        if (last == NULL) return false;
        c->request_length = (size_t)(last - c->in) + 5;
    }
    return c->in_length >= c->request_length;
}

// Answers the requests received, one after the other. Returns false if the connection is gone.
static bool serve(struct connection *c) {
    while (c->answer == NULL && c->in_length > 0 && has_whole_request(c)) {
        size_t used = c->request_length;
        if (!answer_request(c)) return false;
        memmove(c->in, c->in + used, c->in_length - used);
        c->in_length -= used;
        c->head_length = c->request_length = 0;
    }
    return true;
}

static bool receive(struct connection *c) {
    if (c->in_capacity - c->in_length < 4096) {
        c->in_capacity *= 2;
        c->in = realloc(c->in, c->in_capacity);
    }
    ssize_t n = recv(c->fd, c->in + c->in_length, c->in_capacity - c->in_length, 0);
    if (n < 0 && errno == EAGAIN) return true;
    if (n <= 0) {
        close_connection(c);
        return false;
    }
    c->in_length += (size_t)n;
    return serve(c);
}

// --- the loop --------------------------------------------------------------------------------------------------

static void accept_all(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->timer_slot = -1;
        c->in_capacity = 8192;
        c->in = malloc(c->in_capacity);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
        stats.open++;
    }
}

static void run_due_timers(void) {
    uint64_t now = now_ns();
    while (timer_count > 0 && timers[0]->due <= now) {
        struct connection *c = timers[0];
        clear_timer(c);
        if (advance(c)) serve(c);
    }
}

static void wait_and_dispatch(int listener) {
    static struct epoll_event events[512];
    struct timespec pause, *timeout = NULL;
    if (timer_count > 0) {
        uint64_t now = now_ns(), left = timers[0]->due > now ? timers[0]->due - now : 0;
        pause = (struct timespec){.tv_sec = (time_t)(left / NS_PER_S), .tv_nsec = (long)(left % NS_PER_S)};
        timeout = &pause;
    }
    int ready = epoll_pwait2(poller, events, 512, timeout, NULL);
    for (int i = 0; i < ready; i++) {
        struct connection *c = events[i].data.ptr;
        if (c == NULL) {
            accept_all(listener);
            continue;
        }
        if ((events[i].events & EPOLLOUT) && c->answer != NULL && (!flush(c) || !serve(c))) continue;
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
    }
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    if (bind(fd, (void *)&address, length) || listen(fd, 4096)) {
        perror("mock: cannot listen");
        exit(1);
    }
    getsockname(fd, (void *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1000);            // ns; the default of 50 µs would show in the paces
    prctl(PR_SET_PDEATHSIG, SIGTERM);          // never outlive the bench
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int listener = listen_on(argc > 1 ? atoi(argv[1]) : 9000);
    json_answer = build_completion();
    rebuild_streams();
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        wait_and_dispatch(listener);
        run_due_timers();
    }
}
