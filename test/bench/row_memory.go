package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func init() {
	register(90, Row{Name: "memory", About: "resident memory of weftd with the roles of this build", Run: runMemory})
}

// fullNode is how many Pods kubelet allows on a node by default (maxPods).
const fullNode = 110

func runMemory(ctx context.Context, lab *Lab) ([]Result, error) {
	d, n, err := weftNetwork(ctx, lab)
	if err != nil {
		return nil, err
	}
	settle := 5 * time.Second
	if lab.quick {
		settle = time.Second
	}
	idle, err := d.memory(ctx, settle, "idle")
	if err != nil {
		return nil, err
	}
	pods := make([]*Sandbox, fullNode)
	for i := range pods {
		if pods[i], err = lab.Sandbox(); err != nil {
			return nil, err
		}
	}
	if _, err := n.Burst(ctx, pods, 8, false); err != nil {
		return nil, err
	}
	full, err := d.memory(ctx, settle, fmt.Sprintf("with %d Pods", fullNode))
	return []Result{idle, full}, err
}

// memory reads what the daemon has resident, after a while without work.
func (w *Weftd) memory(ctx context.Context, settle time.Duration, when string) (Result, error) {
	pause(ctx, settle)
	kib, err := memoryOf(w.cmd.Process.Pid)
	if err != nil {
		return Result{}, err
	}
	return alone("weftd, resident, "+when, "MB", []float64{kib["VmRSS"] / mega}, noBudget).
		note("%.0f MB of it its own, the rest pages of the file; peak %.0f MB", kib["RssAnon"]/mega, kib["VmHWM"]/mega), nil
}

// memoryOf reads what a process has resident, in KiB by the names of proc_pid_status(5).
func memoryOf(pid int) (map[string]float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, fmt.Errorf("reading the memory of process %d: %w", pid, err)
	}
	kib := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if v, ok := strings.CutSuffix(strings.TrimSpace(value), " kB"); ok {
			kib[name], _ = strconv.ParseFloat(v, 64)
		}
	}
	if kib["VmRSS"] == 0 {
		return nil, fmt.Errorf("process %d has ended", pid)
	}
	return kib, nil
}

// processorTime is what the daemon's threads have used so far.
func (w *Weftd) processorTime() (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", w.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	var total time.Duration
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return 0, fmt.Errorf("reading the processor time of weftd: %w", err)
		}
		used, _, _ := strings.Cut(string(text), " ") // nanoseconds (Documentation/scheduler/sched-stats.rst)
		ns, err := strconv.ParseInt(used, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("reading %s: %w", f, err)
		}
		total += time.Duration(ns)
	}
	return total, nil
}
