// What a program does on an NVIDIA GPU, in time: kernels (those of CUDA graphs too), copies, and calls of
// the runtime. A library that the driver loads into the program; show.py reads what it writes.
//
//   pip install --target F nvidia-cuda-cupti nvidia-cuda-runtime nvidia-cuda-crt    (CUPTI, of the driver's CUDA)
//   gcc -O2 -shared -fPIC trace.c -I F/nvidia/cu13/include -L F/nvidia/cu13/lib -l:libcupti.so.13 -o libtrace.so
//   CUDA_INJECTION64_PATH=$PWD/libtrace.so TRACE_OUT=trace.txt hypura run ...       (LD_LIBRARY_PATH: CUPTI's)
//
// Lines, times in ns:
//   K start end graph stream name
//   M start end bytes kind stream          kind: 1 to the device, 2 from it, 8 on it
//   R start end call                       CUPTI's number of a call, CUpti_runtime_api_trace_cbid
#include <cupti.h>
#include <stdio.h>
#include <stdlib.h>

enum { BUFFER_BYTES = 8 << 20 };

static FILE *out;

static void CUPTIAPI give_buffer(uint8_t **buffer, size_t *size, size_t *max_records) {
    *buffer = aligned_alloc(8, BUFFER_BYTES);
    *size = *buffer ? BUFFER_BYTES : 0;
    *max_records = 0;
}

static void write_record(const CUpti_Activity *record) {
    switch (record->kind) {
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
        const CUpti_ActivityKernel9 *k = (const void *)record;
        fprintf(out, "K %llu %llu %u %u %.60s\n", (unsigned long long)k->start, (unsigned long long)k->end,
                k->graphId, k->streamId, k->name);
        break;
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY: {
        const CUpti_ActivityMemcpy5 *m = (const void *)record;
        fprintf(out, "M %llu %llu %llu %d %u\n", (unsigned long long)m->start, (unsigned long long)m->end,
                (unsigned long long)m->bytes, m->copyKind, m->streamId);
        break;
    }
    case CUPTI_ACTIVITY_KIND_RUNTIME: {
        const CUpti_ActivityAPI *r = (const void *)record;
        fprintf(out, "R %llu %llu %u\n", (unsigned long long)r->start, (unsigned long long)r->end, r->cbid);
        break;
    }
    default:
        break;
    }
}

static void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid) {
    (void)context, (void)stream, (void)size;
    CUpti_Activity *record = NULL;
    while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
        write_record(record);
    }
    free(buffer);
}

static void finish(void) {
    cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    fclose(out);
}

// The driver calls this when it has loaded the library.
int InitializeInjection(void) {
    const char *path = getenv("TRACE_OUT");
    out = path ? fopen(path, "w") : NULL;
    if (!out) {
        fprintf(stderr, "TRACE_OUT must name a file that can be written\n");
        return 1;
    }
    cuptiActivityRegisterCallbacks(give_buffer, take_buffer);
    cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
    cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY);
    cuptiActivityEnable(CUPTI_ACTIVITY_KIND_RUNTIME);
    atexit(finish);
    return 1;
}
