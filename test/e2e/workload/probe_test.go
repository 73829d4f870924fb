package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// listen serves each connection of a port by f.
func listen(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // it may be closed by now
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go f(conn)
		}
	}()
	return l.Addr().String()
}

func TestFailuresAreToldApart(t *testing.T) {
	denies := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "RBAC: access denied", http.StatusForbidden)
	}))
	defer denies.Close()
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := nobody.Close(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		target string
		want   said.Kind
	}{
		"an echo":                 {"tcp:" + listen(t, func(c net.Conn) { _, _ = io.Copy(c, c) }), ""},
		"silence":                 {"tcp:" + listen(t, func(net.Conn) {}), said.Timeout},
		"silence by HTTP":         {"http://" + listen(t, func(net.Conn) {}), said.Timeout},
		"an end":                  {"tcp:" + listen(t, func(c net.Conn) { _ = c.Close() }), said.Ended},
		"nobody listens":          {"tcp:" + nobody.Addr().String(), said.Refused},
		"nobody listens, by HTTP": {"http://" + nobody.Addr().String(), said.Refused},
		"a name without address":  {"tcp:nobody.invalid:80", said.Unresolved},
		"an answer":               {denies.URL, said.Status},
	} {
		t.Run(name, func(t *testing.T) {
			p := prober{method: http.MethodGet, timeout: 300 * time.Millisecond}
			if got := p.try(t.Context(), c.target); got.Kind != c.want || got.OK != (c.want == "") {
				t.Errorf("%+v, want %q", got, c.want)
			}
		})
	}
}

// sign names signs of a test, and takes them away at its end.
func signName(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("keelson-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	t.Cleanup(func() {
		up, err := filepath.Glob(filepath.Join(signs, name+"*"))
		for _, file := range up {
			err = errors.Join(err, os.Remove(file))
		}
		if err != nil {
			t.Error(err)
		}
	})
	return name
}

// play runs a command until it ends, and returns what it printed.
func play[T any](ctx context.Context, t *testing.T, args ...string) func() []T {
	t.Helper()
	var out, stderr strings.Builder
	done := make(chan int, 1)
	go func() { done <- run(ctx, args, &lines{to: &out}, &stderr) }()
	return func() []T {
		if code := <-done; code != 0 {
			t.Fatalf("%v: exit %d: %s", args, code, stderr.String())
		}
		var all []T
		for decoder := json.NewDecoder(strings.NewReader(out.String())); ; {
			var one T
			if err := decoder.Decode(&one); errors.Is(err, io.EOF) {
				return all
			} else if err != nil {
				t.Fatal(err)
			}
			all = append(all, one)
		}
	}
}

func must(t *testing.T, args ...string) {
	t.Helper()
	play[struct{}](t.Context(), t, args...)()
}

func TestAnEchoThatIsLateIsNoCut(t *testing.T) {
	stall := make(chan struct{})
	address := listen(t, func(c net.Conn) {
		buffer := make([]byte, 4)
		for i := 0; ; i++ {
			if _, err := io.ReadFull(c, buffer); err != nil {
				return
			}
			if i == 3 {
				<-stall
			}
			_, _ = c.Write(buffer) // the other end may be gone
		}
	})
	name := signName(t)
	end := play[said.Held](t.Context(), t, "hold", "-for", "20s", "-patience", "100ms", "-name", name, address)
	must(t, "await", name+".began")
	time.Sleep(400 * time.Millisecond) // four times its patience
	close(stall)
	time.Sleep(400 * time.Millisecond)
	must(t, "stop", name)
	if got := end(); len(got) != 2 || !got[0].Open || !got[1].Open || got[1].Echoes < 5 {
		t.Errorf("%+v", got)
	}
}

func TestAnEchoThatIsMissingAtTheEndIsACut(t *testing.T) {
	address := listen(t, func(c net.Conn) { _, _ = io.CopyN(c, c, 12) })
	name := signName(t)
	end := play[said.Held](t.Context(), t, "hold", "-for", "20s", "-patience", "100ms", "-name", name, address)
	must(t, "await", name+".began")
	time.Sleep(400 * time.Millisecond)
	must(t, "stop", name)
	got := end()
	if len(got) != 2 || got[1].Open || got[1].Echoes != 3 || time.Since(time.Unix(0, got[1].At)) < 200*time.Millisecond {
		t.Errorf("%+v", got)
	}
}

func TestAProbeGoesOnThroughAStallAndTellsOfTheChange(t *testing.T) {
	accept := make(chan bool, 1)
	open := true
	address := listen(t, func(c net.Conn) {
		now := <-accept
		if accept <- now; now {
			_, _ = io.CopyN(c, c, 4)
		}
		_ = c.Close()
	})
	accept <- open
	set := func(to bool) { <-accept; accept <- to }
	name := signName(t)
	probe := play[said.Try](t.Context(), t, "probe", "-for", "30s", "-every", "10ms", "-name", name, "tcp:"+address)
	must(t, "await", name+".began")
	set(false)
	must(t, "await", name+".changed")
	time.Sleep(300 * time.Millisecond)
	set(true)
	time.Sleep(300 * time.Millisecond)
	must(t, "stop", name)
	tries := probe()
	if first, last := tries[0], tries[len(tries)-1]; !first.OK || !last.OK {
		t.Errorf("first %+v, last %+v", first, last)
	}
}

func TestASignThatIsNotPutUpIsAnError(t *testing.T) {
	var stderr strings.Builder
	if code := run(t.Context(), []string{"await", "-for", "50ms", signName(t) + ".began"}, &lines{to: io.Discard}, &stderr); code != 1 || !strings.Contains(stderr.String(), "was not put up in 50ms") {
		t.Errorf("exit %d: %s", code, stderr.String())
	}
}

func TestUntilGoesOnUntilItSucceeds(t *testing.T) {
	var tries atomic.Int64 // the listener serves each connection by a goroutine of its own
	address := listen(t, func(c net.Conn) {
		if tries.Add(1) > 2 {
			_, _ = io.Copy(c, c)
		}
		_ = c.Close()
	})
	if got := play[said.Try](t.Context(), t, "until", "-for", "20s", "tcp:"+address)(); len(got) != 1 || !got[0].OK {
		t.Errorf("%+v", got)
	}
	var stderr strings.Builder
	if code := run(t.Context(), []string{"until", "-for", "1ms", "tcp:nobody.invalid:1"}, &lines{to: io.Discard}, &stderr); code != 1 || !strings.Contains(stderr.String(), "not within 1ms") {
		t.Errorf("exit %d: %s", code, stderr.String())
	}
}

func TestAPodIsReadyOnceItsFileSaysSo(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "labels")
	ctx, cancel := context.WithCancel(t.Context())
	done := play[struct{}](ctx, t, "serve", "-ready", address, "-when", file, "-text", `attested="true"`)
	refused := func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	}
	time.Sleep(300 * time.Millisecond)
	if !refused() {
		t.Error("ready without a file")
	}
	if err := os.WriteFile(file, []byte("attested=\"true\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); refused(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not ready")
		}
	}
	cancel()
	done()
}
