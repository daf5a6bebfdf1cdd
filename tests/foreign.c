static long call(long number, long a, long b, long c) {
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
}
__attribute__((used)) static void run(long *stack) {
    char names[6 * 65];
    const char *name = (char *)stack[1];
    long size = 0;
    call(160, (long)names, 0, 0);
    call(64, 1, (long)(names + 4 * 65), 7);
    call(64, 1, (long)" as ", 4);
    while (name[size]) size++;
    call(64, 1, (long)name, size);
    call(64, 1, (long)"\n", 1);
    call(93, stack[0] == 1 ? 7 : 8, 0, 0);
}
__attribute__((naked)) void _start(void) { __asm__("mov x0, sp\n\tb run"); }
