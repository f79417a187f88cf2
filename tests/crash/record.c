// LD_PRELOAD recorder and fault injector for the power-loss tests.
//
// Records every mutating file system call below $RECORD_DIR, with its data, in global order, to $RECORD_LOG:
//   op TAB path TAB second path TAB offset TAB length LF data
//   W write   T truncate   CR create   MV rename   RM unlink   MK mkdir   RD rmdir
//   SB fsync begins (second path: "data" for fdatasync)   S fsync returned 0   F fsync failed
// A write is recorded after it happened, an fsync both when it begins and when it has returned: what was written before
// it began is durable once it has returned.
//
// $FAIL_SYNC_FROM=n: the n-th and every later fdatasync of a file named "db" fails with EIO.
// $KILL_AT=n: the process dies by SIGKILL at the n-th recorded call, once that is done (of an fsync: before it, and after
// it); with $SHUTDOWN=1 the ext4 file system of $RECORD_DIR is shut down first without writing its journal, as by a
// power failure.
// $FULL_AFTER=n: once n bytes have been written to files named "db", every further write fails with ENOSPC.
// $FAIL_IN=text: the two above concern files whose path contains the text, and no others.
// $FAIL_AFTER_RENAME=name: once a file was renamed to this name, every fsync of a directory fails with EIO.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int log_fd = -1;
static char root[PATH_MAX];
static size_t root_length;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static long syncs, fail_sync_from = -1;
static long long written, full_after = -1;
static long calls, kill_at = -1;
static int shut_down;
static const char *fail_in, *fail_after_rename;
static int renamed;

#define REAL(f) static __typeof__(f) *real_##f; if (!real_##f) real_##f = dlsym(RTLD_NEXT, #f)
#define LOCK pthread_mutex_lock(&turn)
#define UNLOCK pthread_mutex_unlock(&turn)

__attribute__((constructor)) static void begin(void) {
  char *dir = getenv("RECORD_DIR"), *log = getenv("RECORD_LOG"), *number;
  if (!dir || !log) return;
  if (!realpath(dir, root)) return;
  root_length = strlen(root);
  if ((number = getenv("FAIL_SYNC_FROM"))) fail_sync_from = atol(number);
  if ((number = getenv("KILL_AT"))) kill_at = atol(number);
  shut_down = getenv("SHUTDOWN") != 0;
  if ((number = getenv("FULL_AFTER"))) full_after = atoll(number);
  fail_in = getenv("FAIL_IN");
  fail_after_rename = getenv("FAIL_AFTER_RENAME");
  int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
  log_fd = real_open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

// The path below the recorded directory, or 0. `path` must be absolute and resolved, as those under test are.
static int below(const char *path, char *out) {
  if (log_fd < 0 || path[0] != '/' || strncmp(path, root, root_length)) return 0;
  if (path[root_length] && path[root_length] != '/') return 0;
  path += root_length;
  while (*path == '/') path++;
  strcpy(out, path);
  return 1;
}

static int below_fd(int fd, char *out) {
  if (log_fd < 0) return 0;
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return below(path, out);
}

static int is_named(const char *path, const char *wanted) {
  const char *name = strrchr(path, '/');
  return !strcmp(name ? name + 1 : path, wanted);
}

// A data file that may fail.
static int is_data(const char *path) { return is_named(path, "db") && (!fail_in || strstr(path, fail_in)); }

static void record(const char *op, const char *path, const char *second, long long offset, const void *data, size_t n) {
  char head[PATH_MAX * 2 + 64];
  int k = snprintf(head, sizeof head, "%s\t%s\t%s\t%lld\t%zu\n", op, path, second, offset, n);
  struct iovec parts[2] = {{head, k}, {(void *)data, n}};
  REAL(writev);
  if (real_writev(log_fd, parts, n ? 2 : 1) != (ssize_t)(k + n)) abort();
  if (kill_at < 0 || ++calls != kill_at) return;
  if (shut_down) {
    // EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH.
    uint32_t flags = 2;
    REAL(open);
    if (ioctl(real_open(root, O_RDONLY), _IOR('X', 125, uint32_t), &flags)) abort();
  }
  kill(getpid(), SIGKILL);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset) {
  REAL(pwrite64);
  char path[PATH_MAX];
  if (!below_fd(fd, path)) return real_pwrite64(fd, data, n, offset);
  LOCK;
  if (full_after >= 0 && is_data(path) && written + (long long)n > full_after) {
    UNLOCK;
    errno = ENOSPC;
    return -1;
  }
  ssize_t r = real_pwrite64(fd, data, n, offset);
  if (r > 0) {
    if (is_data(path)) written += r;
    record("W", path, "", offset, data, r);
  }
  UNLOCK;
  return r;
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t offset) { return pwrite64(fd, data, n, offset); }

ssize_t write(int fd, const void *data, size_t n) {
  REAL(write);
  char path[PATH_MAX];
  if (fd <= 2 || !below_fd(fd, path)) return real_write(fd, data, n);
  LOCK;
  off_t offset = lseek(fd, 0, SEEK_CUR);
  struct stat st;
  if ((fcntl(fd, F_GETFL) & O_APPEND) && !fstat(fd, &st)) offset = st.st_size;
  ssize_t r = real_write(fd, data, n);
  if (r > 0) record("W", path, "", offset, data, r);
  UNLOCK;
  return r;
}

static int synced(int fd, int (*real)(int), int data_only) {
  char path[PATH_MAX];
  if (!below_fd(fd, path)) return real(fd);
  LOCK;
  record("SB", path, data_only ? "data" : "", fd, 0, 0);
  int fail = data_only && fail_sync_from >= 0 && is_data(path) && ++syncs >= fail_sync_from;
  struct stat st;
  if (renamed && !fstat(fd, &st) && S_ISDIR(st.st_mode)) fail = 1;
  UNLOCK;
  int r = fail ? -1 : real(fd);
  int error = fail ? EIO : errno;
  LOCK;
  record(r ? "F" : "S", path, "", fd, 0, 0);
  UNLOCK;
  errno = error;
  return r;
}
int fsync(int fd) { REAL(fsync); return synced(fd, real_fsync, 0); }
int fdatasync(int fd) { REAL(fdatasync); return synced(fd, real_fdatasync, 1); }

int ftruncate64(int fd, off64_t n) {
  REAL(ftruncate64);
  char path[PATH_MAX];
  if (!below_fd(fd, path)) return real_ftruncate64(fd, n);
  LOCK;
  int r = real_ftruncate64(fd, n);
  if (!r) record("T", path, "", n, 0, 0);
  UNLOCK;
  return r;
}
int ftruncate(int fd, off_t n) { return ftruncate64(fd, n); }

int rename(const char *from, const char *to) {
  REAL(rename);
  char a[PATH_MAX], b[PATH_MAX];
  if (!below(from, a) || !below(to, b)) return real_rename(from, to);
  LOCK;
  int r = real_rename(from, to);
  if (!r) record("MV", a, b, 0, 0, 0);
  if (!r && fail_after_rename && is_named(b, fail_after_rename)) renamed = 1;
  UNLOCK;
  return r;
}

#define ONE_PATH(name, op)                                                                                             \
  int name(const char *target) {                                                                                       \
    REAL(name);                                                                                                        \
    char path[PATH_MAX];                                                                                               \
    if (!below(target, path)) return real_##name(target);                                                              \
    LOCK;                                                                                                              \
    int r = real_##name(target);                                                                                       \
    if (!r) record(op, path, "", 0, 0, 0);                                                                             \
    UNLOCK;                                                                                                            \
    return r;                                                                                                          \
  }
ONE_PATH(unlink, "RM")
ONE_PATH(rmdir, "RD")

int mkdir(const char *target, mode_t mode) {
  REAL(mkdir);
  char path[PATH_MAX];
  if (!below(target, path)) return real_mkdir(target, mode);
  LOCK;
  int r = real_mkdir(target, mode);
  if (!r) record("MK", path, "", 0, 0, 0);
  UNLOCK;
  return r;
}

static int opened(int (*real)(const char *, int, ...), const char *target, int flags, mode_t mode) {
  char path[PATH_MAX];
  if (!(flags & (O_CREAT | O_TRUNC)) || !below(target, path)) return real(target, flags, mode);
  LOCK;
  struct stat st;
  int existed = stat(target, &st) == 0;
  int r = real(target, flags, mode);
  if (r >= 0) {
    if (!existed) record("CR", path, "", 0, 0, 0);
    else if (flags & O_TRUNC) record("T", path, "", 0, 0, 0);
  }
  UNLOCK;
  return r;
}
#define OPEN(name)                                                                                                     \
  int name(const char *target, int flags, ...) {                                                                       \
    REAL(name);                                                                                                        \
    va_list rest;                                                                                                      \
    va_start(rest, flags);                                                                                             \
    mode_t mode = va_arg(rest, mode_t);                                                                                \
    va_end(rest);                                                                                                      \
    return opened(real_##name, target, flags, mode);                                                                   \
  }
OPEN(open)
OPEN(open64)
