/* Loops over windows of two spatial axes, for convolution and pooling.

   Tensors come flat, a row for each channel of each image, a plane of height x width in each row. Each
   loop does the rows from `start` to `stop`. */
#pragma once

#include "elementary.h"

/* height and width of each */
typedef struct {
    int64_t kernel[2], strides[2], dilations[2], before[2], counts[2], sizes[2];
} Windows;

static inline int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }

/* The windows, first and end, that have their element at this offset inside the tensor. */
static inline void inside(int64_t offset, int64_t stride, int64_t size, int64_t count,
                          int64_t *first, int64_t *end) {
    *first = offset >= 0 ? 0 : least(count, (stride - 1 - offset) / stride);
    *end = offset >= size ? 0 : least(count, (size - 1 - offset) / stride + 1);
    if (*end < *first) *end = *first;
}

/* For each row, each element (a, b) of the kernel, and each row i of windows that has it inside the
   tensor: `at` is where it lies for the first of the windows `left` to `right` that have it inside. */
#define FOR_EACH_LINE(...) \
    for (int64_t row = start; row < stop; row++) \
        for (int64_t a = 0; a < w->kernel[0]; a++) { \
            const int64_t down = a * w->dilations[0] - w->before[0]; \
            int64_t top, bottom; \
            inside(down, w->strides[0], w->sizes[0], w->counts[0], &top, &bottom); \
            for (int64_t b = 0; b < w->kernel[1]; b++) { \
                const int64_t along = b * w->dilations[1] - w->before[1]; \
                int64_t left, right; \
                inside(along, w->strides[1], w->sizes[1], w->counts[1], &left, &right); \
                __VA_ARGS__ \
            } \
        }
#define LINE_AT(i) \
    ((row * w->sizes[0] + (i) * w->strides[0] + down) * w->sizes[1] + left * step + along)

/* patches [rows, kernel, counts]: each window's elements; 0 where it sees padding. */
static void gather(const T *x, const Windows *w, T *restrict patches, int64_t start, int64_t stop) {
    const int64_t step = w->strides[1];
    T *to = patches + start * w->kernel[0] * w->kernel[1] * w->counts[0] * w->counts[1];
    FOR_EACH_LINE({
        for (int64_t i = 0; i < w->counts[0]; i++, to += w->counts[1]) {
            if (i < top || i >= bottom) {
                for (int64_t j = 0; j < w->counts[1]; j++) to[j] = 0;
                continue;
            }
            const T *from = x + LINE_AT(i) - left * step;
            for (int64_t j = 0; j < left; j++) to[j] = 0;
            if (step == 1)
                for (int64_t j = left; j < right; j++) to[j] = from[j];
            else
                for (int64_t j = left; j < right; j++) to[j] = from[j * step];
            for (int64_t j = right; j < w->counts[1]; j++) to[j] = 0;
        }
    })
}

/* The adjoint of `gather`: adds each window's elements to `out` where they lie. */
static void spread(const T *patches, const Windows *w, T *restrict out, int64_t start,
                   int64_t stop) {
    const int64_t step = w->strides[1];
    const T *from = patches + start * w->kernel[0] * w->kernel[1] * w->counts[0] * w->counts[1];
    FOR_EACH_LINE({
        for (int64_t i = top; i < bottom; i++) {
            T *to = out + LINE_AT(i);
            const T *own = from + i * w->counts[1] + left;
            if (step == 1)
                for (int64_t j = 0; j < right - left; j++) to[j] += own[j];
            else
                for (int64_t j = 0; j < right - left; j++) to[j * step] += own[j];
        }
        from += w->counts[0] * w->counts[1];
    })
}

/* The largest element of each window, and where in its row it is: the first of equal ones.

   A NaN is larger than any number. Windows that see padding alone have -inf, at 0. Which element is the
   largest cannot be foreseen, so nothing is branched on. */
static void find_largest(const T *x, const Windows *w, T *restrict largest,
                         int64_t *restrict places, int64_t start, int64_t stop) {
    const int64_t step = w->strides[1], windows = w->counts[0] * w->counts[1];
    for (int64_t each = start * windows; each < stop * windows; each++) {
        largest[each] = -(T)INFINITY;
        places[each] = -1;
    }
    FOR_EACH_LINE({
        for (int64_t i = top; i < bottom; i++) {
            const int64_t at = LINE_AT(i), place = at - row * w->sizes[0] * w->sizes[1];
            const int64_t to = row * windows + i * w->counts[1] + left;
            for (int64_t j = 0; j < right - left; j++) {
                const T here = x[at + j * step], best = largest[to + j];
                const bool larger = (here > best) | ((here != here) & (best == best)) |
                                    (places[to + j] < 0);
                largest[to + j] = larger ? here : best;
                places[to + j] = larger ? place + j * step : places[to + j];
            }
        }
    })
    for (int64_t each = start * windows; each < stop * windows; each++)
        places[each] = places[each] < 0 ? 0 : places[each];
}

/* Adds each window's number to the first of its elements that is its largest.

   `rest`, of as many elements as a row has windows, holds what they still have to give. */
static void spread_largest(const T *grad, const T *largest, const T *x, const Windows *w,
                           T *restrict out, T *restrict rest, int64_t start, int64_t stop) {
    const int64_t step = w->strides[1], windows = w->counts[0] * w->counts[1];
    int64_t begun = start - 1;
    FOR_EACH_LINE({
        if (begun < row) {
            memcpy(rest, grad + row * windows, (size_t)windows * sizeof(T));
            begun = row;
        }
        for (int64_t i = top; i < bottom; i++) {
            const int64_t at = LINE_AT(i), own = i * w->counts[1] + left;
            const T *row_largest = largest + row * windows + own;
            for (int64_t j = 0; j < right - left; j++) {
                const T here = x[at + j * step], best = row_largest[j], left_over = rest[own + j];
                const bool is_it = (here == best) | ((here != here) & (best != best));
                out[at + j * step] += is_it ? left_over : 0;
                rest[own + j] = is_it ? 0 : left_over;
            }
        }
    })
}
