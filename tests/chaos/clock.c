/* The wall clock, moved: LD_PRELOAD this and the process's clock is off by the nanoseconds that stand in the file
 * CHAOS_CLOCK, eight bytes in the machine's own order, which may change at any time. Without the file, or with a
 * shorter one, the clock is right. Only the wall clock is moved: time limits go by another. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t SECOND = 1000000000;
static volatile const int64_t *shift;

__attribute__((constructor)) static void look_up(void) {
  const char *path = getenv("CHAOS_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  struct stat about;
  if (file < 0) {
    return;
  }
  if (fstat(file, &about) == 0 && about.st_size >= (off_t)sizeof(int64_t)) {
    void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED) {
      shift = mapped;
    }
  }
  close(file);
}

static int64_t moved(const struct timespec *time) {
  return (int64_t)time->tv_sec * SECOND + time->tv_nsec + (shift ? *shift : 0);
}

/* The kernel is asked directly: what is looked up at run time may itself want to know the time. */
int clock_gettime(clockid_t clock, struct timespec *time) {
  int status = (int)syscall(SYS_clock_gettime, clock, time);
  if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
    int64_t now = moved(time);
    time->tv_sec = now / SECOND;
    time->tv_nsec = now % SECOND;
  }
  return status;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
  struct timespec now;
  (void)zone;
  int status = clock_gettime(CLOCK_REALTIME, &now);
  if (status == 0) {
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
  }
  return status;
}

time_t time(time_t *into) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (into) {
    *into = now.tv_sec;
  }
  return now.tv_sec;
}
