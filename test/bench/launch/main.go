// Command launch starts programs and reports their cost. It is small, since the kernel counts the memory of whoever starts a
// program into that program's peak (setmax_mm_hiwater_rss in fs/exec.c, called for the memory shared by vfork).
//
// Each line of standard input is one start: program, file for its standard input, then its environment, separated by tabs.
// The answer is one line: nanoseconds from start to end, peak resident KiB, minor page faults, exit code.
package main

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		fields := strings.Split(in.Text(), "\t")
		answer, err := launch(fields[0], fields[1], fields[2:])
		if err != nil {
			answer = "error: " + err.Error()
		}
		if _, err := os.Stdout.WriteString(answer + "\n"); err != nil {
			os.Exit(1)
		}
	}
}

func launch(program, stdin string, env []string) (string, error) {
	in, err := os.Open(stdin)
	if err != nil {
		return "", err
	}
	defer in.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer null.Close()
	start := time.Now()
	p, err := os.StartProcess(program, []string{program}, &os.ProcAttr{Env: env, Files: []*os.File{in, null, null}})
	if err != nil {
		return "", err
	}
	state, err := p.Wait()
	took := time.Since(start)
	if err != nil {
		return "", err
	}
	use := state.SysUsage().(*syscall.Rusage)
	numbers := []int64{took.Nanoseconds(), use.Maxrss, use.Minflt, int64(state.ExitCode())}
	var out []string
	for _, n := range numbers {
		out = append(out, strconv.FormatInt(n, 10))
	}
	return strings.Join(out, " "), nil
}
