// LD_PRELOAD library: faults that a test switches on and off while the program runs.
//
// $FAULTS names a file of three 64-bit numbers of this machine, mapped here and written by the test:
//   0  not zero: fsync and fdatasync of files below $FAULTS_DIR fail with EIO
//   1  not zero: every write to a file below $FAULTS_DIR fails with ENOSPC
//   2  milliseconds by which the wall clock is off
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const int64_t none[3];
static const volatile int64_t *faults = none;
static char root[PATH_MAX];

#define REAL(f) static __typeof__(f) *real_##f; if (!real_##f) real_##f = dlsym(RTLD_NEXT, #f)

__attribute__((constructor)) static void begin(void) {
  char *file = getenv("FAULTS"), *dir = getenv("FAULTS_DIR");
  if (!file || !dir || !realpath(dir, root)) return;
  int fd = open(file, O_RDONLY | O_CLOEXEC);
  void *page = fd < 0 ? MAP_FAILED : mmap(0, sizeof none, PROT_READ, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) abort();
  close(fd);
  faults = page;
}

static int below(int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  size_t length = strlen(root);
  return n > (ssize_t)length && !strncmp(path, root, length) && path[length] == '/';
}

static int fails(int fault, int fd, int error) {
  if (!faults[fault] || !below(fd)) return 0;
  errno = error;
  return 1;
}

int fsync(int fd) { REAL(fsync); return fails(0, fd, EIO) ? -1 : real_fsync(fd); }
int fdatasync(int fd) { REAL(fdatasync); return fails(0, fd, EIO) ? -1 : real_fdatasync(fd); }

ssize_t write(int fd, const void *data, size_t n) {
  REAL(write);
  return fails(1, fd, ENOSPC) ? -1 : real_write(fd, data, n);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
  REAL(pwrite64);
  return fails(1, fd, ENOSPC) ? -1 : real_pwrite64(fd, data, n, at);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) { return pwrite64(fd, data, n, at); }

int clock_gettime(clockid_t clock, struct timespec *now) {
  REAL(clock_gettime);
  int r = real_clock_gettime(clock, now);
  if (!r && clock == CLOCK_REALTIME) {
    int64_t ms = faults[2];
    now->tv_sec += ms / 1000;
    now->tv_nsec += ms % 1000 * 1000000;
    if (now->tv_nsec < 0) now->tv_nsec += 1000000000, now->tv_sec--;
    if (now->tv_nsec >= 1000000000) now->tv_nsec -= 1000000000, now->tv_sec++;
  }
  return r;
}
