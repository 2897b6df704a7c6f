/* Starts a program whose system calls this process's child can let fail: seccomp asks the child at each call (user
 * notification). What fails is written in a file that both sides have mapped.
 *
 *     supervisor CONTROL_FILE NUMBERS PROGRAM ARGUMENTS...
 *
 * NUMBERS are system calls with commas between them, those that the child is asked about. The program has this
 * process's id. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CALLS = 512, NAME = 16 };

/* `Control` in control.rs has the same fields in the same order. */
struct control {
    int number;         /* The call that fails; negative for none. */
    int error;          /* The errno that it fails with. */
    int left;           /* Calls that are still to fail; negative for all. */
    int failed;         /* Calls that have failed. */
    int has_begun;      /* The program is past its loader: it has made a call of `poll`. */
    int listener;       /* The descriptor of the notifications, from the parent to the child. */
    int kind;           /* What the call must be for: 'f' a file, 's' a socket, 'w' a wait; 0 for any. */
    char thread[NAME];  /* The thread whose calls fail; empty for all. */
    unsigned counts[CALLS];
};

static volatile struct control *control;

static void fail(const char *what)
{
    perror(what);
    exit(120);
}

static int install(const char *numbers)
{
    static struct sock_filter code[2 * CALLS + 4];
    unsigned short length = 0;
    code[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (const char *at = numbers; *at;) {
        char *end;
        unsigned number = strtoul(at, &end, 10);
        code[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1);
        code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
        at = *end ? end + 1 : end;
    }
    code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = { length, code };
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

static int is_of_thread(pid_t thread)
{
    if (!control->thread[0])
        return 1;
    char path[64], name[NAME + 1] = "";
    snprintf(path, sizeof path, "/proc/%d/comm", thread);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t length = read(file, name, NAME);
    close(file);
    if (length > 0 && name[length - 1] == '\n')
        name[length - 1] = 0;
    return strncmp(name, (const char *)control->thread, NAME) == 0;
}

/* Only a file can be full, and only a connection can be broken. */
static int is_of_kind(pid_t thread, int file, int operation)
{
    if (!control->kind)
        return 1;
    if (control->kind == 'w')
        /* FUTEX_WAIT and FUTEX_WAIT_BITSET; a wake-up does not fail. */
        return (operation & 127) == 0 || (operation & 127) == 9;
    char path[64], to[16] = "";
    snprintf(path, sizeof path, "/proc/%d/fd/%d", thread, file);
    if (readlink(path, to, sizeof to - 1) < 0)
        return 0;
    int is_connection = strncmp(to, "socket:", 7) == 0;
    return control->kind == 's' ? is_connection : to[0] == '/';
}

static void supervise(void)
{
    while (control->listener < 0)
        usleep(100);
    /* The parent's descriptors were shared until here, so that this one could be seen. */
    int listener = control->listener;
    if (syscall(SYS_unshare, CLONE_FILES) != 0)
        fail("unshare");
    for (int file = 0; file < 3; file++)
        close(file);
    control->listener = -2;
    prctl(PR_SET_NAME, "supervisor");
    setsid();
    for (;;) {
        struct pollfd waits = { listener, POLLIN, 0 };
        if (poll(&waits, 1, -1) < 0 && errno == EINTR)
            continue;
        if (waits.revents & (POLLHUP | POLLERR))
            exit(0);
        struct seccomp_notif asked;
        memset(&asked, 0, sizeof asked);
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &asked) != 0)
            continue;
        struct seccomp_notif_resp answer = { asked.id, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE };
        int number = asked.data.nr;
        if (number >= 0 && number < CALLS)
            control->counts[number]++;
        if (number == SYS_poll)
            control->has_begun = 1;
        else if (control->has_begun && number == control->number && control->left != 0 && is_of_thread(asked.pid)
            && is_of_kind(asked.pid, asked.data.args[0], asked.data.args[1])) {
            if (control->left > 0)
                control->left--;
            control->failed++;
            answer.flags = 0;
            answer.error = -control->error;
        }
        ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
    }
}

int main(int count, char **arguments)
{
    if (count < 4) {
        fprintf(stderr, "usage: supervisor CONTROL_FILE NUMBERS PROGRAM ARGUMENTS...\n");
        return 2;
    }
    int file = open(arguments[1], O_RDWR | O_CLOEXEC);
    if (file < 0)
        fail(arguments[1]);
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (control == MAP_FAILED)
        fail("mmap");
    control->listener = -1;
    long child = syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
    if (child < 0)
        fail("clone");
    if (child == 0)
        supervise();
    int listener = install(arguments[2]);
    if (listener < 0)
        fail("seccomp");
    control->listener = listener;
    /* No call of this process between here and the next line: the child could not answer it yet. */
    while (control->listener != -2) {
    }
    execv(arguments[3], arguments + 3);
    fail(arguments[3]);
}
