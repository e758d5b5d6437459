/* Faults of a machine, for one process and what it starts: see faulty_machine.py. Linux with glibc. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static const char *folder, *sign;       /* the disk, and the file that makes it full by being there */
static volatile const int64_t *offset;  /* seconds by which the clock is off, shared with the test */

__attribute__((constructor)) static void prepare(void) {
    folder = getenv("FULL_DISK");
    sign = getenv("FULL_DISK_SIGN");
    const char *clock = getenv("CLOCK_OFFSET");
    int file = clock ? open(clock, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        void *page = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
        if (page != MAP_FAILED) offset = page;
        close(file);
    }
}

#define NEXT(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

static int is_full(void) { return folder && sign && syscall(SYS_faccessat, AT_FDCWD, sign, F_OK) == 0; }

static int is_below(const char *path) {
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int on_disk(int directory, const char *path) {
    char link[64], found[PATH_MAX];
    if (path && path[0] == '/') return is_below(path);
    if (directory == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, found, sizeof found - 1);
    if (length < 0) return 0;
    found[length] = 0;
    return is_below(found);
}

#define REFUSE(directory, path) if (is_full() && on_disk(directory, path)) { errno = ENOSPC; return -1; }

/* What is there can be opened; what has to be made can not. */
static int refused(int directory, const char *path, int flags) {
    return (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) && is_full() && on_disk(directory, path)
        && ((flags & O_TMPFILE) == O_TMPFILE || syscall(SYS_faccessat, directory, path, F_OK) != 0);
}

#define OPEN(name, before, directory, ...)                                       \
    int name(before const char *path, int flags, ...) {                          \
        va_list rest;                                                            \
        va_start(rest, flags);                                                   \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;        \
        va_end(rest);                                                            \
        if (refused(directory, path, flags)) { errno = ENOSPC; return -1; }      \
        return NEXT(name)(__VA_ARGS__ path, flags, mode);                        \
    }
#define NOTHING
#define DIRECTORY int directory,
#define PASSED directory,
OPEN(open, NOTHING, AT_FDCWD, )
OPEN(open64, NOTHING, AT_FDCWD, )
OPEN(openat, DIRECTORY, directory, PASSED)
OPEN(openat64, DIRECTORY, directory, PASSED)

FILE *fopen(const char *path, const char *mode) {
    if (refused(AT_FDCWD, path, mode[0] == 'r' ? 0 : O_CREAT)) { errno = ENOSPC; return NULL; }
    return NEXT(fopen)(path, mode);
}
int mkdir(const char *path, mode_t mode) {
    REFUSE(AT_FDCWD, path)
    return NEXT(mkdir)(path, mode);
}
int mkdirat(int directory, const char *path, mode_t mode) {
    REFUSE(directory, path)
    return NEXT(mkdirat)(directory, path, mode);
}
int symlink(const char *target, const char *path) {
    REFUSE(AT_FDCWD, path)
    return NEXT(symlink)(target, path);
}
int link(const char *from, const char *path) {
    REFUSE(AT_FDCWD, path)
    return NEXT(link)(from, path);
}
ssize_t write(int file, const void *data, size_t size) {
    REFUSE(file, NULL)
    return NEXT(write)(file, data, size);
}
ssize_t writev(int file, const struct iovec *parts, int count) {
    REFUSE(file, NULL)
    return NEXT(writev)(file, parts, count);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
    REFUSE(file, NULL)
    return NEXT(pwrite)(file, data, size, at);
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    REFUSE(file, NULL)
    return NEXT(pwrite64)(file, data, size, at);
}
ssize_t copy_file_range(int from, off64_t *start, int file, off64_t *at, size_t size, unsigned int flags) {
    REFUSE(file, NULL)
    return NEXT(copy_file_range)(from, start, file, at, size, flags);
}
ssize_t sendfile64(int file, int from, off64_t *at, size_t size) {
    REFUSE(file, NULL)
    return NEXT(sendfile64)(file, from, at, size);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = NEXT(clock_gettime)(clock, now);
    if (result == 0 && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *offset;
    return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = NEXT(gettimeofday)(now, zone);
    if (result == 0 && offset) now->tv_sec += *offset;
    return result;
}
time_t time(time_t *now) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    if (now) *now = at.tv_sec;
    return at.tv_sec;
}
