/* A disk that fails when it is told to, for a process that is started with this library in
 * LD_PRELOAD: only for files whose path holds "/spigate.db", and only while the file that
 * FAULTS_CONTROL names begins with
 *   n   writes take half of what they are given and end with ENOSPC
 *   r   writes end with EROFS, as after a file system has turned read-only for an error
 *   e   fsync and fdatasync end with EIO
 *   h   fsync and fdatasync do not come back */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static char fault(int fd)
{
    char link[64], path[4096], first = 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    const char *control = getenv("FAULTS_CONTROL");
    if (!strstr(path, "/spigate.db") || !control)
        return 0;
    int file = open(control, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    if (syscall(SYS_read, file, &first, 1) != 1)
        first = 0;
    close(file);
    return first;
}

static int failed(int error)
{
    errno = error;
    return -1;
}

ssize_t write(int fd, const void *bytes, size_t count)
{
    switch (fault(fd)) {
    case 'r':
        return failed(EROFS);
    case 'n':
        syscall(SYS_write, fd, bytes, count / 2);
        return failed(ENOSPC);
    }
    return syscall(SYS_write, fd, bytes, count);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at)
{
    switch (fault(fd)) {
    case 'r':
        return failed(EROFS);
    case 'n':
        syscall(SYS_pwrite64, fd, bytes, count / 2, at);
        return failed(ENOSPC);
    }
    return syscall(SYS_pwrite64, fd, bytes, count, at);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at)
{
    return pwrite64(fd, bytes, count, at);
}

static int flush(int fd, long call)
{
    while (fault(fd) == 'h')
        usleep(5000);
    return fault(fd) == 'e' ? failed(EIO) : (int)syscall(call, fd);
}

int fsync(int fd)
{
    return flush(fd, SYS_fsync);
}

int fdatasync(int fd)
{
    return flush(fd, SYS_fdatasync);
}
