package store

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// report gives the median and the 99th percentile of the samples.
func report(b *testing.B, samples []time.Duration) {
	slices.Sort(samples)
	b.ReportMetric(float64(samples[len(samples)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(samples[len(samples)*99/100].Microseconds()), "p99-µs")
	b.ReportMetric(0, "ns/op")
}

func BenchmarkWriteOne(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "weft.db"))
	var samples []time.Duration
	for n := 0; b.Loop(); n++ {
		start := time.Now()
		write(b, s, PutLease(lease(n%200)))
		samples = append(samples, time.Since(start))
	}
	report(b, samples)
}

// BenchmarkWriteBurst measures 50 writes at once, from the first to the last answer.
func BenchmarkWriteBurst(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "weft.db"))
	var samples []time.Duration
	for b.Loop() {
		start := time.Now()
		var wg sync.WaitGroup
		for n := range 50 {
			wg.Go(func() { write(b, s, PutLease(lease(n))) })
		}
		wg.Wait()
		samples = append(samples, time.Since(start))
	}
	report(b, samples)
}

func BenchmarkSaveSnapshot(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "weft.db"))
	big := snapshot(5000)
	for b.Loop() {
		if err := s.SaveSnapshot(ctx, big); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCheck compares verify, which guards Open, with bbolt's own check, on files of two sizes.
func BenchmarkCheck(b *testing.B) {
	for _, leases := range []int{200, 7000} {
		content := sample(b, leases)
		path := place(b, content)
		size := fmt.Sprintf("%.1fMB", float64(len(content))/1e6)
		b.Run("verify/"+size, func(b *testing.B) {
			file := must(os.Open(path))(b)
			defer func() { _ = file.Close() }()
			for b.Loop() {
				if err := verify(file, int64(len(content))); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("verify-in-memory/"+size, func(b *testing.B) {
			for b.Loop() {
				if err := verify(bytes.NewReader(content), int64(len(content))); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("bbolt/"+size, func(b *testing.B) {
			db := must(openBolt(path, nil))(b)
			defer func() { _ = db.Close() }()
			for b.Loop() {
				if err := db.View(func(tx *bolt.Tx) error { return <-tx.Check() }); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("open/"+size, func(b *testing.B) {
			for b.Loop() {
				closeStore(b, must(Open(path, Options{Version: "v0.1.0"}))(b))
			}
		})
	}
}
