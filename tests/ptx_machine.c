/* A CUDA driver without a device: memory is the host's, and a launch is handed to the program that was registered.

   Kernels that were translated to C (ptx_machine.py) read and write through `place`, which finds accesses outside of what was
   allocated, misaligned ones, reads of shared memory that nobody wrote, and races: two threads at one number between two
   barriers, or two blocks in one launch, at least one of them writing. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int status;
enum { OK = 0, INVALID = 1, MISSING = 500, UNSUPPORTED = 801, MOST = 65536, READERS_MANY = -2, NOBODY = -1 };
/* Bytes around every array that belong to none: what misses one array does not meet the next. */
enum { GAP = 1 << 20 };

typedef struct {
    uint64_t epoch_written, epoch_read, block_written, block_read;
    int writer, reader;
} trace;

typedef struct {
    uint64_t first, size;
    trace *traces; /* of every four bytes */
} memory;

static memory memories[MOST];
static int count;
static uint64_t epoch = 1, block = 1, launch_began;
static memory shared;
char machine_error[400];

static memory *find(uint64_t address, uint64_t size) {
    if (shared.first && address >= shared.first && address + size <= shared.first + shared.size) return &shared;
    for (int i = count - 1; i >= 0; i--)
        if (address >= memories[i].first && address + size <= memories[i].first + memories[i].size) return &memories[i];
    return NULL;
}

static void begin_memory(memory *m, uint64_t first, uint64_t size) {
    m->first = first;
    m->size = size;
    m->traces = calloc(size / 4 + 1, sizeof(trace));
    for (uint64_t k = 0; k <= size / 4; k++) m->traces[k].writer = m->traces[k].reader = NOBODY;
}

/* Check an access of a thread; returns the address, or NULL with a reason in machine_error. */
void *place(uint64_t address, int size, int alignment, int writes, int thread) {
    memory *m = find(address, size);
    if (machine_error[0]) return NULL;
    if (!m) {
        snprintf(machine_error, sizeof machine_error, "thread %d: %s %d bytes outside of all memory", thread,
                 writes ? "writes" : "reads", size);
        return NULL;
    }
    if (address % alignment) {
        snprintf(machine_error, sizeof machine_error, "thread %d: access of %d bytes is not aligned", thread, alignment);
        return NULL;
    }
    for (uint64_t k = (address - m->first) / 4; k < (address - m->first + size + 3) / 4; k++) {
        trace *t = &m->traces[k];
        const char *what = NULL;
        if (t->epoch_written == epoch && t->writer != thread) what = "another thread wrote between the same barriers";
        if (writes && t->epoch_read == epoch && t->reader != thread) what = "another thread reads between the same barriers";
        if (m != &shared && t->block_written >= launch_began && t->block_written != block) what = "another block wrote";
        if (writes && m != &shared && t->block_read >= launch_began && t->block_read != block) what = "another block reads";
        if (!writes && m == &shared && t->writer == NOBODY) what = "nobody wrote";
        if (what) {
            snprintf(machine_error, sizeof machine_error, "thread %d %s %s number %llu of %llu, which %s", thread,
                     writes ? "writes" : "reads", m == &shared ? "shared" : "global", (unsigned long long)k,
                     (unsigned long long)m->size / 4, what);
            return NULL;
        }
        if (writes) {
            t->writer = thread, t->epoch_written = epoch, t->block_written = block;
        } else {
            t->reader = t->epoch_read == epoch && t->reader != thread ? READERS_MANY : thread;
            t->epoch_read = epoch, t->block_read = block;
        }
    }
    return (void *)address;
}

void begin_launch(void) { launch_began = ++block; machine_error[0] = 0; }
void begin_block(void *numbers, uint64_t size) {
    block++, epoch++;
    free(shared.traces);
    memset(numbers, 0xff, size);
    begin_memory(&shared, (uint64_t)numbers, size);
}
void pass_barrier(void) { epoch++; }

/* --- the driver ------------------------------------------------------------------------------------------------ */

typedef struct {
    unsigned grid[3], block[3], shared_bytes;
    void *stream, *attributes;
    unsigned attribute_count;
} configuration;

static int (*run_kernel)(unsigned, unsigned, unsigned, unsigned, void **);
static int allowed_shared = 48 << 10;
void register_machine(int (*run)(unsigned, unsigned, unsigned, unsigned, void **)) { run_kernel = run; }

static long context_is, function_is, stream_is;
#define ANY long a, long b, long c, long d, long e, long f

status cuInit(unsigned flags) { return OK; }
status cuDriverGetVersion(int *version) { *version = 13000; return OK; }
status cuDeviceGetCount(int *n) { *n = 1; return OK; }
status cuDeviceGet(int *device, int ordinal) { *device = 0; return OK; }
status cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "PTX machine"); return OK; }
status cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 1ul << 31; return OK; }
status cuDeviceGetUuid_v2(char *uuid, int device) { memset(uuid, 7, 16); return OK; }
status cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: *value = 1024; break;                     /* threads in a block */
    case 8: *value = 48 << 10; break;                 /* shared memory of a block */
    case 10: *value = 32; break;                      /* threads in a warp */
    case 16: *value = 4; break;                       /* multiprocessors */
    case 75: *value = 9; break;                       /* compute capability */
    case 76: *value = 0; break;
    case 97: *value = 227 << 10; break;               /* shared memory that a block may ask for */
    case 2: case 3: case 4: *value = 1024; break;
    case 5: case 6: case 7: *value = 1 << 16; break;
    case 41: *value = 1; break;                       /* unified addresses */
    default: *value = 0;
    }
    return OK;
}
status cuDevicePrimaryCtxRetain(void **context, int device) { *context = &context_is; return OK; }
status cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
status cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return OK; }
status cuCtxGetCurrent(void **context) { *context = &context_is; return OK; }
status cuCtxSetCurrent(void *context) { return OK; }
status cuCtxPushCurrent_v2(void *context) { return OK; }
status cuCtxPopCurrent_v2(void **context) { *context = &context_is; return OK; }
status cuCtxGetDevice(int *device) { *device = 0; return OK; }
status cuCtxGetDevice_v2(int *device, void *context) { *device = 0; return OK; }
status cuCtxSynchronize(void) { return OK; }
status cuCtxGetId(void *context, uint64_t *number) { *number = 1; return OK; }
status cuMemGetInfo_v2(size_t *available, size_t *total) { *available = *total = 1ul << 31; return OK; }
status cuMemAlloc_v2(uint64_t *address, size_t size) {
    if (count == MOST) return INVALID;
    uint64_t first = (uint64_t)aligned_alloc(256, (size + 255) / 256 * 256 + 2 * GAP) + GAP;
    memset((void *)first, 0xff, size); /* what nobody wrote is NaN */
    begin_memory(&memories[count++], first, size);
    *address = first;
    return OK;
}
status cuMemFree_v2(uint64_t address) {
    for (int i = 0; i < count; i++)
        if (memories[i].first == address) {
            free((void *)(address - GAP));
            free(memories[i].traces);
            memories[i] = memories[--count];
            return OK;
        }
    return INVALID;
}
status cuMemHostAlloc(void **address, size_t size, unsigned flags) { *address = malloc(size); return OK; }
status cuMemFreeHost(void *address) { free(address); return OK; }
status cuMemHostGetDevicePointer_v2(uint64_t *device, void *host, unsigned flags) { *device = (uint64_t)host; return OK; }
static status copied(void *to, const void *from, size_t size, uint64_t device) {
    if (!find(device, size)) return INVALID;
    memcpy(to, from, size);
    return OK;
}
status cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size) { return copied((void *)to, from, size, to); }
status cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) { return copied(to, (void *)from, size, from); }
status cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) { return copied((void *)to, from, size, to); }
status cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) { return copied(to, (void *)from, size, from); }
status cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t size) { return copied((void *)to, (void *)from, size, to); }
status cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, void *stream) { return cuMemcpyDtoD_v2(to, from, size); }
status cuStreamCreate(void **stream, unsigned flags) { *stream = &stream_is; return OK; }
status cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) { *stream = &stream_is; return OK; }
status cuStreamDestroy_v2(void *stream) { return OK; }
status cuStreamSynchronize(void *stream) { return OK; }
status cuStreamGetCtx(void *stream, void **context) { *context = &context_is; return OK; }
status cuEventCreate(void **event, unsigned flags) { *event = &stream_is; return OK; }
status cuEventRecord(void *event, void *stream) { return OK; }
status cuEventSynchronize(void *event) { return OK; }
status cuEventDestroy_v2(void *event) { return OK; }
status cuEventElapsedTime(float *ms, void *from, void *to) { *ms = 1; return OK; }
status cuEventElapsedTime_v2(float *ms, void *from, void *to) { *ms = 1; return OK; }
status cuLibraryLoadData(void **library, const void *code, void *a, void *b, unsigned c, void *d, void *e, unsigned f) {
    *library = malloc(8); /* a handle of its own */
    return OK;
}
status cuLibraryUnload(void *library) { return OK; }
status cuLibraryGetKernel(void **kernel, void *library, const char *name) { *kernel = &function_is; return OK; }
status cuLibraryGetModule(void **module, void *library) { *module = &function_is; return OK; }
status cuModuleLoadDataEx(void **module, const void *code, unsigned n, void *a, void *b) { *module = &function_is; return OK; }
status cuModuleUnload(void *module) { return OK; }
status cuModuleGetFunction(void **function, void *module, const char *name) { *function = &function_is; return OK; }
status cuKernelGetFunction(void **function, void *kernel) { *function = &function_is; return OK; }
status cuKernelGetAttribute(int *value, int attribute, void *kernel, int device) { *value = attribute == 0 ? 1024 : 0; return OK; }
status cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute == 0 ? 1024 : 0; return OK; }
status cuKernelSetAttribute(int attribute, int value, void *kernel, int device) {
    if (attribute != 8) return UNSUPPORTED; /* the largest dynamic shared memory */
    if (value < 227 << 10) return INVALID;  /* it would hold for what another thread launches, too */
    allowed_shared = value;
    return value <= 227 << 10 ? OK : INVALID;
}
status cuFuncSetAttribute(void *function, int attribute, int value) { return cuKernelSetAttribute(attribute, value, 0, 0); }
status cuLaunchKernelEx(const configuration *c, void *function, void **parameters, void **extra) {
    if (c->shared_bytes > (unsigned)allowed_shared || c->block[1] != 1 || c->block[2] != 1 || c->grid[2] != 1) return INVALID;
    if (c->block[0] > 1024 || c->grid[0] == 0 || c->grid[1] == 0 || c->grid[1] > 65535) return INVALID;
    allowed_shared = 48 << 10;
    return run_kernel(c->grid[0], c->grid[1], c->block[0], c->shared_bytes, parameters);
}
status cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared_bytes, void *stream, void **parameters, void **extra) {
    configuration c = {{gx, gy, gz}, {bx, by, bz}, shared_bytes, stream, 0, 0};
    return cuLaunchKernelEx(&c, function, parameters, extra);
}
status cuGetErrorName(status code, const char **text) { *text = code == UNSUPPORTED ? "NOT_SUPPORTED" : "INVALID"; return OK; }
status cuGetErrorString(status code, const char **text) { return cuGetErrorName(code, text); }
static status missing(ANY) { return UNSUPPORTED; }

#include <dlfcn.h>
static void *self;
status cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found) {
    char versioned[200];
    if (!self) self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    const char *endings[] = {"_v2", "", "_v3"};
    *function = NULL;
    for (int i = 0; i < 2 && !*function; i++) {
        snprintf(versioned, sizeof versioned, "%s%s", name, endings[i]);
        *function = dlsym(self, versioned);
    }
    if (!*function) *function = (void *)missing;
    if (found) *found = 0;
    return OK;
}
status cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
