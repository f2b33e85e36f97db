/* A mock OpenAI upstream that is never the bottleneck: one thread, epoll, no dependencies.
 *
 *   cc -O2 -o mock mock.c && ./mock        listens on a free loopback port and prints it
 *
 * It checks nothing and knows no URL. The request body picks the answer, so that every gateway reaches all of them:
 *   (default)               a fixed chat.completion of about 700 bytes, at once
 *   "mock-d50"              the same, 50 ms later
 *   "stream":true           SSE: 100 content chunks, finish, usage, [DONE]; one write() per event
 *   ... and "mock-pace"     the same, one content chunk every 10 ms
 *   ... and "mock-ttft"     the same, 10 ms of silence after the first chunk: a burst would keep the core that the
 *                           client needs to see the first chunk, and time the scheduler instead
 * A GET answers a model list (for gateways that probe, and for cold starts). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { CHUNKS = 100, FRAMES = CHUNKS + 4, DELAY_US = 50000, PACE_US = 10000, BATCH = 256 };
enum { BURST, EACH, FIRST };             /* where a stream pauses: nowhere, before each chunk, after the first */

typedef struct conn {
    int fd, dead, waiting, pause, waited;
    int frame;                       /* next SSE frame to write; FRAMES: no stream is running */
    const char *out; size_t nout;    /* what is being written now */
    long long due; struct conn *next;
    size_t nin; char in[262144];
} conn;
typedef struct { conn *head, *tail; long long wait_us; } queue;   /* constant wait: first in, first out */
typedef struct { char text[2048]; size_t n; } message;

static message reply, models, frames[FRAMES];
static queue delayed = { .wait_us = DELAY_US }, paced = { .wait_us = PACE_US };

static long long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static void put_off(queue *q, conn *c) {
    c->waiting = 1; c->due = now_us() + q->wait_us; c->next = NULL;
    if (q->tail) q->tail->next = c; else q->head = c;
    q->tail = c;
}

static void hang_up(conn *c) {
    if (!c->dead) close(c->fd);
    c->dead = 1;
    if (!c->waiting) free(c);        /* else freed when its timer fires */
}

static int has(const char *text, size_t n, const char *word) { return memmem(text, n, word, strlen(word)) != NULL; }

/* Bytes of the first whole request in the buffer, 0 while it is incomplete. */
static size_t whole_request(conn *c, char **body, size_t *nbody) {
    char *end = memmem(c->in, c->nin, "\r\n\r\n", 4);
    if (!end) return 0;
    *body = end + 4; *nbody = 0; *end = 0;
    size_t have = c->in + c->nin - *body;
    const char *length = strcasestr(c->in, "\r\ncontent-length:");
    int chunked = strcasestr(c->in, "\r\ntransfer-encoding:") != NULL;
    *end = '\r';
    if (length) *nbody = strtoul(length + 17, NULL, 10);
    if (chunked) {                   /* the chunk lines stay in: the modes are found by substring anyway */
        char *last = memmem(*body, have, "0\r\n\r\n", 5);
        if (!last) return 0;
        *nbody = last + 5 - *body;
    }
    return have < *nbody ? 0 : (size_t)(*body - c->in) + *nbody;
}

/* Start the answer to the next buffered request; 0: there is none yet. */
static int start_answer(conn *c) {
    char *body; size_t n, used = whole_request(c, &body, &n);
    if (!used) return 0;
    int get = !strncmp(c->in, "GET", 3), late = has(body, n, "mock-d50");
    int stream = has(body, n, "\"stream\":true") || has(body, n, "\"stream\": true");
    c->pause = has(body, n, "mock-pace") ? EACH : has(body, n, "mock-ttft") ? FIRST : BURST; c->waited = 0;
    c->nin -= used;
    memmove(c->in, c->in + used, c->nin);
    if (stream) { c->frame = 0; return 1; }
    c->out = get ? models.text : reply.text; c->nout = get ? models.n : reply.n;
    if (late) put_off(&delayed, c);
    return 1;
}

static void start_frame(conn *c) {
    int pause = c->pause == EACH ? c->frame >= 1 && c->frame <= CHUNKS : c->pause == FIRST && c->frame == 2;
    if (pause && !c->waited) {
        c->waited = 1; put_off(&paced, c);
        return;
    }
    c->waited = 0; c->out = frames[c->frame].text; c->nout = frames[c->frame].n; c->frame++;
}

/* Go on until the peer, the timer or the next request has to be waited for. */
static void advance(conn *c) {
    while (!c->waiting) {
        if (c->nout) {
            ssize_t n = write(c->fd, c->out, c->nout);
            if (n < 0 && errno == EAGAIN) return;
            if (n < 0) { hang_up(c); return; }
            c->out += n; c->nout -= n;
        } else if (c->frame < FRAMES) start_frame(c);
        else if (!start_answer(c)) return;
    }
}

static void fire(queue *q, long long now) {
    while (q->head && q->head->due <= now) {
        conn *c = q->head;
        q->head = c->next;
        if (!q->head) q->tail = NULL;
        c->waiting = 0;
        if (c->dead) free(c); else advance(c);
    }
}

static void on_event(conn *c, unsigned events) {
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        ssize_t n;
        while ((n = read(c->fd, c->in + c->nin, sizeof c->in - 1 - c->nin)) > 0) c->nin += n;
        if (n == 0 || errno != EAGAIN) { hang_up(c); return; }
    }
    advance(c);
}

static void accept_all(int ep, int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        conn *c = malloc(sizeof *c);
        if (!c) { close(fd); return; }
        memset(c, 0, sizeof *c - sizeof c->in);
        c->fd = fd; c->frame = FRAMES;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT | EPOLLET | EPOLLRDHUP, .data.ptr = c };
        epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
    }
}

static void json_message(message *m, const char *body) {
    m->n = sprintf(m->text, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_mock\r\n"
                            "content-length: %zu\r\n\r\n%s", strlen(body), body);
}

static void build_frames(void) {
    const char *head = "data: {\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion.chunk\",\"created\":1741569952,"
                       "\"model\":\"gpt-4.1-2025-04-14\",\"choices\":[";
    char event[512];
    frames[0].n = sprintf(frames[0].text, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                                          "cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n");
    for (int i = 1; i < FRAMES; i++) {
        if (i <= CHUNKS)
            sprintf(event, "%s{\"index\":0,\"delta\":{\"content\":\" tok%d\"},\"logprobs\":null,"
                           "\"finish_reason\":null}]}\n\n", head, i);
        else if (i == CHUNKS + 1)
            sprintf(event, "%s{\"index\":0,\"delta\":{},\"logprobs\":null,"
                           "\"finish_reason\":\"stop\"}]}\n\n", head);
        else if (i == CHUNKS + 2)
            sprintf(event, "%s],\"usage\":{\"prompt_tokens\":19,\"completion_tokens\":100,"
                           "\"total_tokens\":119}}\n\n", head);
        else
            strcpy(event, "data: [DONE]\n\n");
        const char *last = i == FRAMES - 1 ? "0\r\n\r\n" : "";
        frames[i].n = sprintf(frames[i].text, "%zx\r\n%s\r\n%s", strlen(event), event, last);
    }
}

static void build(void) {
    json_message(&models,
        "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"created\":1741569952,"
        "\"owned_by\":\"mock\"}]}");
    json_message(&reply,
        "{\"id\":\"chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT\",\"object\":\"chat.completion\",\"created\":1741569952,"
        "\"model\":\"gpt-4.1-2025-04-14\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
        "\"content\":\"Hello! How can I assist you today?\",\"refusal\":null,\"annotations\":[]},\"logprobs\":null,"
        "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":19,\"completion_tokens\":10,\"total_tokens\":29,"
        "\"prompt_tokens_details\":{\"cached_tokens\":0,\"audio_tokens\":0},"
        "\"completion_tokens_details\":{\"reasoning_tokens\":0,\"audio_tokens\":0,"
        "\"accepted_prediction_tokens\":0,\"rejected_prediction_tokens\":0}},"
        "\"service_tier\":\"default\",\"system_fingerprint\":\"fp_44709d6fcb\"}");
    build_frames();
}

static int listen_on_free_port(void) {
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (void *)&a, n) || listen(fd, 4096) || getsockname(fd, (void *)&a, &n)) {
        perror("mock");
        exit(1);
    }
    printf("%d\n", ntohs(a.sin_port));
    fflush(stdout);
    return fd;
}

static struct timespec *until_next_timer(struct timespec *ts) {
    const conn *a = delayed.head, *b = paced.head;
    if (!a && !b) return NULL;
    long long wait = (!a ? b->due : !b || a->due < b->due ? a->due : b->due) - now_us();
    if (wait < 0) wait = 0;
    *ts = (struct timespec){ .tv_sec = wait / 1000000, .tv_nsec = wait % 1000000 * 1000 };
    return ts;
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGTERM);    /* never outlive the harness */
    build();
    int listener = listen_on_free_port(), ep = epoll_create1(0);
    struct epoll_event ev = { .events = EPOLLIN, .data.ptr = NULL }, events[BATCH];
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &ev);
    for (;;) {
        struct timespec ts;
        int n = epoll_pwait2(ep, events, BATCH, until_next_timer(&ts), NULL);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr) on_event(events[i].data.ptr, events[i].events);
            else accept_all(ep, listener);
        }
        long long now = now_us();
        fire(&delayed, now); fire(&paced, now);
    }
}
