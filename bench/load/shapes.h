/* The bytes of a model server: frames, answers and catalogue pages in the OpenAI and Ollama shapes, rendered once.
 * Every frame has a fixed length whatever its numbers, so the bytes of a whole answer are known before it is sent. */
#ifndef FAIRGATE_BENCH_SHAPES_H
#define FAIRGATE_BENCH_SHAPES_H

#include "common.h"

enum dialect { OPENAI, OLLAMA };

struct frame {
    char data[4096];
    size_t length, mark;
};
static struct frame content[2], answer[2];
static const char role_frame[] =
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"bench\",\"choices\":"
    "[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
static const char finish_frame[] =
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"bench\",\"choices\":"
    "[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n";
static const char usage_format[] =
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"bench\",\"choices\":"
    "[],\"usage\":{\"prompt_tokens\":256,\"completion_tokens\":%" PRId64 ",\"total_tokens\":%" PRId64 "}}\n\n";
static const char done_frame[] = "data: [DONE]\n\n";
static const char ollama_done_format[] =
    "{\"model\":\"bench\",\"created_at\":\"2024-01-01T00:00:00.000000000Z\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},"
    "\"done\":true,\"done_reason\":\"stop\",\"total_duration\":5000000000,\"load_duration\":1000000,\"prompt_eval_count\":256,"
    "\"prompt_eval_duration\":100000000,\"eval_count\":%" PRId64 ",\"eval_duration\":4800000000}\n";
static const char stream_head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
                                  "Transfer-Encoding: chunked\r\n\r\n";
static const char ndjson_head[] = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n";
static const char json_head_format[] = "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n";

/* before + mark + padding words + after, `total` bytes long as far as the parts allow. */
static inline void render(struct frame *f, const char *before, const char *after, size_t total)
{
    size_t used = strlen(before) + MARK_BYTES + strlen(after);
    size_t padding = total > used ? total - used : 0;
    if (used + padding > sizeof f->data)
        die("a frame of %zu bytes does not fit", total);
    f->mark = strlen(before);
    memcpy(f->data, before, f->mark);
    char *at = f->data + f->mark + MARK_BYTES;
    for (size_t i = 0; i < padding; i++)
        *at++ = " token"[i % 6];
    memcpy(at, after, strlen(after));
    f->length = used + padding;
}

static inline void render_frames(size_t frame_bytes, size_t answer_bytes)
{
    render(&content[OPENAI],
           "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"bench\","
           "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"",
           "\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n", frame_bytes);
    render(&content[OLLAMA],
           "{\"model\":\"bench\",\"created_at\":\"2024-01-01T00:00:00.000000000Z\",\"message\":{\"role\":\"assistant\",\"content\":\"",
           "\"},\"done\":false}\n", frame_bytes);
    render(&answer[OPENAI],
           "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"bench\",\"choices\":[{"
           "\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"",
           "\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":256,\"completion_tokens\":64,"
           "\"total_tokens\":320}}", answer_bytes);
    render(&answer[OLLAMA],
           "{\"model\":\"bench\",\"created_at\":\"2024-01-01T00:00:00.000000000Z\",\"message\":{\"role\":\"assistant\",\"content\":\"",
           "\"},\"done\":true,\"done_reason\":\"stop\",\"total_duration\":5000000000,\"load_duration\":1000000,"
           "\"prompt_eval_count\":256,\"prompt_eval_duration\":100000000,\"eval_count\":64,\"eval_duration\":4800000000}",
           answer_bytes);
}

/* Bytes of a whole sound answer, after dechunking: what the client must count. */
static inline size_t expected_bytes(enum dialect dialect, bool stream, int64_t frames, bool usage)
{
    char text[1024];
    if (!stream)
        return answer[dialect].length;
    size_t total = content[dialect].length * (size_t)frames;
    if (dialect == OLLAMA)
        return total + (size_t)snprintf(text, sizeof text, ollama_done_format, frames);
    if (usage)
        total += (size_t)snprintf(text, sizeof text, usage_format, frames, frames + 256);
    return total + sizeof role_frame - 1 + sizeof finish_frame - 1 + sizeof done_frame - 1;
}

static const struct {
    const char *path, *body;
} fixed[] = {
    {"/v1/models", "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"bench\","
                   "\"max_model_len\":131072}]}"},
    {"/api/tags", "{\"models\":[{\"name\":\"bench:latest\",\"model\":\"bench:latest\",\"modified_at\":\"2024-01-01T00:00:00Z\",\"size\":1000000,"
                  "\"digest\":\"0000000000000000000000000000000000000000000000000000000000000000\",\"details\":{\"format\":\"gguf\","
                  "\"family\":\"llama\",\"families\":[\"llama\"],\"parameter_size\":\"1M\",\"quantization_level\":\"F16\"}}]}"},
    {"/api/ps", "{\"models\":[{\"name\":\"bench:latest\",\"model\":\"bench:latest\",\"size\":1000000,\"size_vram\":1000000,"
                "\"digest\":\"0000000000000000000000000000000000000000000000000000000000000000\",\"expires_at\":\"2100-01-01T00:00:00Z\"}]}"},
    {"/api/version", "{\"version\":\"0.9.0\"}"},
    {"/api/show", "{\"details\":{\"format\":\"gguf\",\"family\":\"llama\"},\"model_info\":{\"llama.context_length\":131072},"
                  "\"capabilities\":[\"completion\"]}"},
    {"/v1/embeddings", "{\"object\":\"list\",\"data\":[{\"object\":\"embedding\",\"index\":0,\"embedding\":[0.5,0.25,0.125]}],"
                       "\"model\":\"bench\",\"usage\":{\"prompt_tokens\":8,\"total_tokens\":8}}"},
    {"/api/embed", "{\"model\":\"bench\",\"embeddings\":[[0.5,0.25,0.125]],\"total_duration\":1000000,\"load_duration\":1000,"
                   "\"prompt_eval_count\":8}"},
    {"/health", "{\"status\":\"ok\"}"},
    {"/version", "{\"version\":\"0.9.0\"}"},
    {"/get_model_info", "{\"model_path\":\"bench\",\"is_generation\":true}"},
    {"/get_server_info", "{\"model_path\":\"bench\",\"dp_size\":1}"},
    {"/props", "{\"total_slots\":100000,\"model_path\":\"bench\"}"},
};

#endif
