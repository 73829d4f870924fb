// Package bench measures what the project promises about speed and memory, each as a ratio of
// two figures of one run, so that it holds on any machine. Run it with `make bench`.
package bench

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1" // IMA's first field is SHA-1 whatever the bank
	"crypto/sha256"
	"encoding/json"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/verify"
)

// figure is one line of the table. Value and AtMost are ratios, or MiB where Unit says so.
type figure struct {
	What   string  `json:"what"`
	Value  float64 `json:"value"`
	AtMost float64 `json:"atMost,omitempty"` // 0: for information
	Missed bool    `json:"missed"`
	Unit   string  `json:"unit"`
	Detail string  `json:"detail"`
}

// promise is a figure that must not be above a limit.
func promise(what string, value, atMost float64, unit, detail string) figure {
	return figure{What: what, Value: value, AtMost: atMost, Unit: unit, Detail: detail}
}

// cpu is the processor time that this process has used, its garbage collector included.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func median[T cmp.Ordered](d []T) T {
	slices.Sort(d)
	return d[len(d)/2]
}

// repeat is the median of several runs; each begins with a clean heap.
func repeat(n int, f func() time.Duration) time.Duration {
	var all []time.Duration
	for range n {
		runtime.GC()
		all = append(all, f())
	}
	return median(all)
}

const (
	entries = 100_000
	more    = 100
)

// BenchmarkPromises prints a table, and writes the same as JSON into the file that
// KEELSON_BENCH_JSON names.
func BenchmarkPromises(b *testing.B) {
	var table []figure
	table = append(table, whole(b)...)
	table = append(table, incremental(b))
	table = append(table, manyStates(b), longList(b), atOnce(b), agentAnswers(b))
	var text strings.Builder
	fmt.Fprintf(&text, "\n%-74s %8s %8s %6s  %s\n", "what", "value", "at most", "", "detail")
	for i := range table {
		f := &table[i]
		limit, verdict := "-", ""
		if f.AtMost > 0 {
			f.Missed = f.Value > f.AtMost
			limit, verdict = fmt.Sprintf("%.1f", f.AtMost), map[bool]string{false: "held", true: "MISSED"}[f.Missed]
		}
		fmt.Fprintf(&text, "%-74s %6.2f%-3s %7s %6s  %s\n", f.What, f.Value, f.Unit, limit, verdict, f.Detail)
		if f.Missed {
			b.Errorf("%s: %.2f %s, the promise is at most %.1f; on a busy machine, try again", f.What, f.Value, f.Unit, f.AtMost)
		}
	}
	b.Log(text.String())
	if file := os.Getenv("KEELSON_BENCH_JSON"); file != "" {
		data := must(json.MarshalIndent(table, "", "  "))(b)
		if err := os.WriteFile(filepath.Clean(file), append(data, '\n'), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() { // everything was measured above
	}
}

// whole is an appraisal of all that a machine has against what no appraisal can do without, and the
// same of a machine that started its programs in no order, and of one whose programs no set lists.
// Machine and measure have their turns, so that other load meets both.
func whole(b *testing.B) []figure {
	m := newMachine(b)
	m.run(0, entries)
	m.accept(b)
	ratio, once, detail := against(b, m)
	mixed := newMachine(b)
	for _, i := range mathrand.Perm(entries) {
		mixed.measure(program(i))
	}
	mixed.accept(b)
	mixedRatio, _, mixedDetail := against(b, mixed)
	unlisted := newMachine(b)
	unlisted.run(0, 10)
	unlisted.accept(b)
	unlisted.ignore(b, "/usr/lib/")
	unlisted.run(10, entries)
	unlistedRatio, _, unlistedDetail := against(b, unlisted)
	const hashes = "(signature checks + the hashes that IMA's format asks for)"
	return []figure{
		promise("appraisal / "+hashes, ratio, 1.3, "x", detail),
		promise("the same, programs started in no order", mixedRatio, 1.3, "x", mixedDetail),
		{What: "the same, programs of a directory that the set ignores", Value: unlistedRatio, Unit: "x", Detail: unlistedDetail},
		{What: "appraisal / (signature checks + one SHA-256 pass over the same bytes)", Value: once, Unit: "x"},
	}
}

// against is an appraisal of a machine by what no appraisal can do without, and by one pass over
// the same bytes.
func against(b *testing.B, m *machine) (ratio, onePass float64, detail string) {
	sent := slices.Concat(chunks(b, evidence.EventLog, m.log, 0), chunks(b, evidence.IMALog, m.list, 0))
	var ratios, onceRatios []float64
	var took, signatures, hashes []time.Duration
	for range 15 {
		runtime.GC()
		_, d := m.appraiseSent(b, nil, func(uint64) []*evidence.Chunk { return sent })
		took = append(took, d)
		signatures = append(signatures, verifySignatures(b, 3))
		hashes = append(hashes, hashAsIMADoes(b, m))
		start := cpu(b)
		sha256.Sum256(m.log)
		sha256.Sum256(m.list)
		once := cpu(b) - start
		n := len(took) - 1
		ratios = append(ratios, float64(d)/float64(signatures[n]+hashes[n]))
		onceRatios = append(onceRatios, float64(d)/float64(signatures[n]+once))
	}
	return median(ratios), median(onceRatios), fmt.Sprintf("%d entries, %.1f MB: appraisal %v, its 3 signature checks %v, hashes %v",
		m.entries, float64(len(m.list))/1e6, median(took), median(signatures), median(hashes))
}

// verifySignatures checks as many signatures as an appraisal has: EK certificate, its issuer,
// quote.
func verifySignatures(b *testing.B, n int) time.Duration {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(b)
	sum := sha256.Sum256(nil)
	sig := must(ecdsa.SignASN1(rand.Reader, key, sum[:]))(b)
	start := cpu(b)
	for range n {
		if !ecdsa.VerifyASN1(&key.PublicKey, sum[:], sig) {
			b.Fatal("signature")
		}
	}
	return cpu(b) - start
}

// hashAsIMADoes hashes each entry as its format asks for: SHA-1 over the template data (the
// recorded hash), SHA-256 over the same (the bank's), SHA-256 over PCR and digest (the extension).
func hashAsIMADoes(b *testing.B, m *machine) time.Duration {
	start := cpu(b)
	sha256.Sum256(m.log)
	var pcr [64]byte
	for rest := m.list; len(rest) > 0; {
		const head = 4 + 20 + 4 + len("ima-sig") + 4
		size := int(rest[head-4]) | int(rest[head-3])<<8
		data := rest[head : head+size]
		sha1.Sum(data)
		d := sha256.Sum256(data)
		copy(pcr[32:], d[:])
		v := sha256.Sum256(pcr[:])
		copy(pcr[:], v[:])
		rest = rest[head+size:]
	}
	return cpu(b) - start
}

// incremental compares new entries after many with as many after none.
func incremental(b *testing.B) figure {
	long, short := newMachine(b), newMachine(b)
	long.run(0, entries+more)
	short.run(0, more)
	long.accept(b)
	short.accept(b)
	sets := long.policy.References
	reset := func() *machine {
		m := *long
		m.list, m.size, m.entries = nil, 0, 0
		m.values = map[int][]byte{}
		for i, v := range short.values {
			m.values[i] = v
		}
		return &m
	}
	start := reset()
	start.values[10] = make([]byte, sha256.Size)
	h := sha256.New()
	for i := range 10 {
		h.Write(start.values[i])
	}
	start.measure(entry("boot_aggregate", h.Sum(nil)))
	start.run(0, entries)
	start.trust(b, sets)
	before, _ := start.appraise(b, nil)
	start.run(entries, entries+more)
	again := repeat(21, func() time.Duration {
		again, d := start.appraise(b, func(nodeclaim.EKHash) (verify.State, bool) { return before.State, true })
		if !again.Resumed {
			b.Fatal("not resumed")
		}
		return d
	})
	first := repeat(21, func() time.Duration { _, d := short.appraise(b, nil); return d })
	return promise(fmt.Sprintf("appraisal of %d entries after %d / of %d after none", more, entries, more), float64(again)/float64(first), 2, "x",
		fmt.Sprintf("%v, %v", again, first))
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

const mib = 1 << 20

// manyStates is the memory of what a server keeps for ten thousand nodes.
func manyStates(b *testing.B) figure {
	m := newMachine(b)
	m.run(0, 1000)
	m.accept(b)
	p, _ := m.appraise(b, nil)
	before := heap()
	const nodes = 10_000
	kept := make([]verify.State, nodes)
	for i := range kept {
		kept[i] = p.State
	}
	used := heap() - before
	counted := kept[0].Size() * nodes
	runtime.KeepAlive(kept)
	return promise(fmt.Sprintf("state for %d nodes", nodes), float64(used)/mib, 64, "MiB", fmt.Sprintf("the store counts %.1f MiB for them, and bounds that", float64(counted)/mib))
}

// longList is the peak of the heap while a server takes a list of a million entries that are all
// different.
func longList(b *testing.B) figure {
	const million = 1_000_000
	m := newMachine(b)
	m.run(0, 10)
	m.accept(b)
	m.ignore(b, "/usr/lib/")
	m.spill(b)
	m.run(10, million)
	before := heap()
	peak := before
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(2 * time.Millisecond):
				var s runtime.MemStats
				runtime.ReadMemStats(&s)
				peak = max(peak, s.HeapAlloc)
			}
		}
	})
	start := time.Now()
	_, took := m.appraiseStreamed(b)
	wall := time.Since(start)
	close(done)
	wait.Wait()
	return promise(fmt.Sprintf("peak memory above start, IMA list of %d entries", million), float64(peak-before)/mib, 64, "MiB",
		fmt.Sprintf("%.0f MB of list, %v of CPU, %v", float64(m.size)/1e6, took, wall.Round(time.Millisecond)))
}

// atOnce compares 64 appraisals at once with 64 in turn.
func atOnce(b *testing.B) figure {
	const n, size = 64, 5000
	m := newMachine(b)
	m.run(0, size)
	m.accept(b)
	sent := slices.Concat(chunks(b, evidence.EventLog, m.log, 0), chunks(b, evidence.IMALog, m.list, 0))
	send := func(uint64) []*evidence.Chunk { return sent } // what the nodes do is not the server's time
	var ratios []float64
	var inTurns, togethers []time.Duration
	for range 9 {
		start := time.Now()
		for range n {
			m.appraiseSent(b, nil, send)
		}
		inTurn := time.Since(start)
		start = time.Now()
		var wait sync.WaitGroup
		for range n {
			wait.Go(func() { m.appraiseSent(b, nil, send) })
		}
		wait.Wait()
		together := time.Since(start)
		inTurns, togethers = append(inTurns, inTurn), append(togethers, together)
		ratios = append(ratios, float64(together)/(float64(inTurn)/float64(runtime.GOMAXPROCS(0))))
	}
	together, inTurn := median(togethers), median(inTurns)
	cores := runtime.GOMAXPROCS(0)
	return promise(fmt.Sprintf("%d appraisals at once / (in turn / %d cores)", n, cores), median(ratios), 1.2, "x",
		fmt.Sprintf("%v at once, %v in turn; other load on the machine shows here", together.Round(time.Millisecond), inTurn.Round(time.Millisecond)))
}

// BenchmarkAppraisal is the server's half of an attestation alone, for profiles.
func BenchmarkAppraisal(b *testing.B) {
	m := newMachine(b)
	m.run(0, entries)
	m.accept(b)
	sent := slices.Concat(chunks(b, evidence.EventLog, m.log, 0), chunks(b, evidence.IMALog, m.list, 0))
	b.SetBytes(int64(len(m.list)))
	b.ReportAllocs()
	for b.Loop() {
		m.appraiseSent(b, nil, func(uint64) []*evidence.Chunk { return sent })
	}
}

// BenchmarkIMAReplay is the replay alone, for profiles.
func BenchmarkIMAReplay(b *testing.B) {
	m := newMachine(b)
	m.run(0, entries)
	m.accept(b)
	pcrs := m.quoted(b)
	b.SetBytes(int64(len(m.list)))
	for b.Loop() {
		learned := m.policy.References.Measure()
		r := ima.NewStream(pcrs, ima.Options{}, learned.Add)
		must(r.Write(m.list))(b)
		must(r.Finish())(b)
	}
}

// BenchmarkHashesOfIMAReplay is its floor.
func BenchmarkHashesOfIMAReplay(b *testing.B) {
	m := newMachine(b)
	m.run(0, entries)
	b.SetBytes(int64(len(m.list)))
	for b.Loop() {
		hashAsIMADoes(b, m)
	}
}
