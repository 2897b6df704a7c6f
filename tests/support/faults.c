/* Makes system calls of a relay fail or block, as the test says in a file that both have mapped. It stands before the C
 * library (LD_PRELOAD). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* `Faults` in faults.rs has the same fields in the same order. */
struct faults {
    int enter_errno;  /* io_uring_enter fails with this; 0 lets it pass. */
    int enter_count;  /* Calls that fail; negative for all. */
    int enter_thread; /* The thread whose calls fail or block; 0 for all. */
    int enter_blocks; /* io_uring_enter does not return while this is not 0. */
    int audit_blocks; /* write to a file audit.jsonl does not return while this is not 0. */
};

static volatile struct faults *faults;

__attribute__((constructor)) static void map_faults(void)
{
    const char *path = getenv("FAULTS_FILE");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *memory = mmap(NULL, sizeof(struct faults), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory != MAP_FAILED)
        faults = memory;
}

/* Opens FAULTS_FILE.sockstat and FAULTS_FILE.tcp_mem, where they exist, for the files of the kernel with these names. */
static const char *substitute(const char *path, char *other, size_t room)
{
    const char *file = getenv("FAULTS_FILE");
    const char *name = strcmp(path, "/proc/net/sockstat") == 0 ? "sockstat"
        : strcmp(path, "/proc/sys/net/ipv4/tcp_mem") == 0      ? "tcp_mem"
                                                               : NULL;
    if (!file || !name)
        return path;
    snprintf(other, room, "%s.%s", file, name);
    return access(other, R_OK) == 0 ? other : path;
}

int open64(const char *path, int flags, ...)
{
    static int (*next)(const char *, int, ...);
    char other[4096];
    va_list list;
    va_start(list, flags);
    int mode = va_arg(list, int);
    va_end(list);
    if (!next)
        next = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    return next(substitute(path, other, sizeof other), flags, mode);
}

static int is_audit(int file)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return strstr(path, "audit.jsonl") != NULL;
}

ssize_t write(int file, const void *bytes, size_t count)
{
    static ssize_t (*next)(int, const void *, size_t);
    if (!next)
        next = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    while (faults && faults->audit_blocks && is_audit(file))
        usleep(1000);
    return next(file, bytes, count);
}

long syscall(long number, ...)
{
    static long (*next)(long, ...);
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    if (!next)
        next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    if (faults && number == SYS_io_uring_enter && (!faults->enter_thread || faults->enter_thread == gettid())) {
        while (faults->enter_blocks)
            usleep(1000);
        if (faults->enter_errno && faults->enter_count) {
            if (faults->enter_count > 0)
                faults->enter_count--;
            errno = faults->enter_errno;
            return -1;
        }
    }
    return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
