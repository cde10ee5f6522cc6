/* Loaded with LD_PRELOAD: counts the operations by which this process changes files, and makes one of them go wrong.

   Everything that writes goes through the functions of the C library below: Python, Rust (safetensors), C++ (Parquet).
   An operation counts if its path contains `part`. Nothing is counted before `faults_arm`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char part[PATH_MAX];
static volatile long counted, chosen;
static volatile int signal_number, error_number, lasting, armed;

/* Operation number `at` of those whose path contains `text` gets a signal, or fails with an error: only this one, or, with
   `from_then_on`, it and all later ones that need space. */
void faults_arm(const char *text, long at, int signal, int error, int from_then_on) {
    strncpy(part, text, sizeof part - 1);
    counted = 0;
    chosen = at, signal_number = signal, error_number = error, lasting = from_then_on;
    armed = 1;
}

long faults_counted(void) { return counted; }

static int concerns(const char *path) { return path != NULL && strstr(path, part) != NULL; }

/* `path` as the kernel would resolve it from the folder that `descriptor` has open. */
static int concerns_at(int descriptor, const char *path) {
    char link[64], whole[2 * PATH_MAX];
    if (!armed || path == NULL) return 0;
    if (path[0] == '/' || descriptor == AT_FDCWD) return concerns(path);
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, whole, PATH_MAX);
    if (length < 0) return 0;
    snprintf(whole + length, sizeof whole - length, "/%s", path);
    return concerns(whole);
}

static int concerns_open(int descriptor) {
    char link[64], path[PATH_MAX];
    if (!armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return concerns(path);
}

/* Counts an operation. Returns 1, with errno set, if it must fail. */
static int fails(int concerned, int needs_space) {
    if (!armed || !concerned) return 0;
    long number = __sync_add_and_fetch(&counted, 1);
    if (number == chosen && signal_number) kill(getpid(), signal_number);
    if (error_number && (number == chosen || (lasting && number > chosen && needs_space))) {
        errno = error_number;
        return 1;
    }
    return 0;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define CHANGES(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & (O_CREAT | O_TRUNC)))
#define MODE(flags) mode_t mode = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); \
    mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *path, int flags, ...) {
    REAL(open);
    MODE(flags);
    return CHANGES(flags) && fails(armed && concerns(path), flags & O_CREAT) ? -1 : real(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    REAL(open64);
    MODE(flags);
    return CHANGES(flags) && fails(armed && concerns(path), flags & O_CREAT) ? -1 : real(path, flags, mode);
}
int openat(int folder, const char *path, int flags, ...) {
    REAL(openat);
    MODE(flags);
    return CHANGES(flags) && fails(concerns_at(folder, path), flags & O_CREAT) ? -1 : real(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
    REAL(openat64);
    MODE(flags);
    return CHANGES(flags) && fails(concerns_at(folder, path), flags & O_CREAT) ? -1 : real(folder, path, flags, mode);
}

/* Half of the data is written before a write goes wrong, as on a disk that fills up. */
ssize_t write(int file, const void *data, size_t size) {
    REAL(write);
    int concerned = concerns_open(file);
    if (concerned && counted + 1 == chosen && size > 1) {
        ssize_t written = real(file, data, size / 2);
        if (fails(1, 1)) return lasting && written > 0 ? written : -1;
        ssize_t rest = real(file, (const char *)data + written, size - written);
        return rest < 0 ? written : written + rest;
    }
    return fails(concerned, 1) ? -1 : real(file, data, size);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
    REAL(pwrite);
    return fails(concerns_open(file), 1) ? -1 : real(file, data, size, at);
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    return fails(concerns_open(file), 1) ? -1 : real(file, data, size, at);
}
ssize_t writev(int file, const struct iovec *data, int count) {
    REAL(writev);
    return fails(concerns_open(file), 1) ? -1 : real(file, data, count);
}

#define ON_FILE(name) int name(int file) { REAL(name); return fails(concerns_open(file), 0) ? -1 : real(file); }
#define ON_PATH(name) int name(const char *path) { REAL(name); return fails(armed && concerns(path), 0) ? -1 : real(path); }
ON_FILE(fsync)
ON_FILE(fdatasync)
ON_PATH(unlink)
ON_PATH(rmdir)
int ftruncate(int file, off_t size) { REAL(ftruncate); return fails(concerns_open(file), 0) ? -1 : real(file, size); }
int ftruncate64(int file, off64_t size) { REAL(ftruncate64); return fails(concerns_open(file), 0) ? -1 : real(file, size); }
int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    return fails(concerns_at(folder, path), 0) ? -1 : real(folder, path, flags);
}
int rename(const char *from, const char *to) {
    REAL(rename);
    return fails(armed && (concerns(from) || concerns(to)), 0) ? -1 : real(from, to);
}
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return fails(armed && concerns(path), 1) ? -1 : real(path, mode);
}
int symlink(const char *target, const char *path) {
    REAL(symlink);
    return fails(armed && concerns(path), 1) ? -1 : real(target, path);
}
int chmod(const char *path, mode_t mode) {
    REAL(chmod);
    return fails(armed && concerns(path), 0) ? -1 : real(path, mode);
}
