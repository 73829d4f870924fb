package workloadplugin_test

import (
	"fmt"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keelson-project/keelson/workloadattestor/runtime"
)

// crowd is a node with pods, each of one container; their processes are 1000 and on.
func crowd(b *testing.B, pods int) *world {
	b.Helper()
	w := newWorld(b)
	for n := range pods {
		p := w.pod
		p.Name, p.UID = fmt.Sprintf("api-%d", n+1), fmt.Sprintf("%08d%s", n, podUID[8:])
		p.ContainerID, p.SandboxID = fmt.Sprintf("%064x", 0x1000+n), fmt.Sprintf("%064x", 0x2000+n)
		p.CgroupsPath = "/kubepods/pod" + p.UID + "/" + p.ContainerID
		if err := w.runtime.Add(p); err != nil {
			b.Fatal(err)
		}
		w.process(1000+n, "0::"+p.CgroupsPath+"\n")
		object := strings.NewReplacer(`"name":"api-0"`, `"name":"`+p.Name+`"`, podUID, p.UID).Replace(apiPod)
		w.objects.Store("/api/v1/namespaces/payments/pods/"+p.Name, object)
	}
	w.configure(w.hcl())
	return w
}

// attested attests one process and returns how long it took.
func (w *world) attested(pid int) time.Duration {
	begun := time.Now()
	got, err := w.attest(int32(pid))
	took := time.Since(begun)
	if err != nil || !slices.Contains(got, "signed-by:release-key") {
		w.t.Errorf("process %d: %v, %v", pid, got, err)
	}
	return took
}

func quantile(times []time.Duration, q float64) float64 {
	slices.Sort(times)
	return float64(times[int(q*float64(len(times)-1))].Microseconds())
}

// BenchmarkAttest measures attestations through the plugin's gRPC against a runtime and a registry on this machine, with 50 pods on the
// node: one after another, warm and against its CRI calls alone; cold, where the image has to be bound and its signature fetched; and
// 1,000 in flight, with the memory above rest.
func BenchmarkAttest(b *testing.B) {
	const pods = 50
	b.Run("warm", func(b *testing.B) {
		for _, n := range []int{5, pods} {
			b.Run(fmt.Sprintf("pods=%d", n), func(b *testing.B) {
				w := crowd(b, n)
				client, err := runtime.Dial(filepath.Join(w.dir, "cri.sock"), time.Second)
				if err != nil {
					b.Fatal(err)
				}
				defer client.Close()
				for i := range n {
					w.attested(1000 + i)
				}
				var warm, cri []time.Duration
				for b.Loop() {
					i := len(warm) % n
					warm = append(warm, w.attested(1000+i))
					begun := time.Now()
					if _, err := client.Container(b.Context(), fmt.Sprintf("%064x", 0x1000+i)); err != nil {
						b.Fatal(err)
					}
					cri = append(cri, time.Since(begun))
				}
				b.ReportMetric(quantile(warm, 0.5), "p50-µs")
				b.ReportMetric(quantile(warm, 0.99), "p99-µs")
				b.ReportMetric(quantile(warm, 0.5)/quantile(cri, 0.5), "x-CRI")
			})
		}
	})
	b.Run("cold", func(b *testing.B) {
		w := crowd(b, 1)
		var cold []time.Duration
		for b.Loop() {
			w.configure(w.hcl()) // a new configuration knows nothing
			cold = append(cold, w.attested(1000))
		}
		b.ReportMetric(quantile(cold, 0.5), "p50-µs")
		b.ReportMetric(quantile(cold, 0.99), "p99-µs")
	})
	b.Run("in-flight=1000", func(b *testing.B) {
		w := crowd(b, pods)
		for i := range pods {
			w.attested(1000 + i)
		}
		var times []time.Duration
		var most uint64
		for b.Loop() {
			rest := heap()
			took, peak := w.atOnce(1000, pods)
			times = append(times, took...)
			most = max(most, peak-min(peak, rest))
		}
		p50, p99 := quantile(times, 0.5), quantile(times, 0.99)
		b.ReportMetric(p50, "p50-µs")
		b.ReportMetric(p99, "p99-µs")
		b.ReportMetric(p99/p50, "p99/p50")
		b.ReportMetric(float64(most)/(1<<20), "MiB-above-rest")
	})
}

// atOnce has n attestations in flight, and returns how long each took and the most memory that the heap held meanwhile: the client's,
// the runtime's and the registry's are in it.
func (w *world) atOnce(n, pods int) (times []time.Duration, peak uint64) {
	times = make([]time.Duration, n)
	done, watched := make(chan struct{}), make(chan uint64)
	go func() {
		var most uint64
		for {
			select {
			case <-done:
				watched <- most
				return
			case <-time.After(5 * time.Millisecond):
				var m goruntime.MemStats
				goruntime.ReadMemStats(&m)
				most = max(most, m.HeapInuse+m.StackInuse)
			}
		}
	}()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { times[i] = w.attested(1000 + i%pods) })
	}
	all.Wait()
	close(done)
	return times, <-watched
}

func heap() uint64 {
	goruntime.GC()
	var m goruntime.MemStats
	goruntime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
