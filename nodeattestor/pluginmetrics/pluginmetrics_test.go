package pluginmetrics_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	metricsv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/common/metrics/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/keelson-project/keelson/nodeattestor/pluginconf"
	"github.com/keelson-project/keelson/nodeattestor/pluginmetrics"
)

// recorder is SPIRE's telemetry as a plugin sees it; it hangs when it has a channel.
type recorder struct {
	metricsv1.MetricsClient
	hang chan struct{}

	mu  sync.Mutex
	got map[string]float32
}

func (r *recorder) note(ctx context.Context, kind string, key []string, val float32, labels []*metricsv1.Label) (*emptypb.Empty, error) {
	if r.hang != nil {
		select {
		case <-r.hang:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	name := kind + " " + strings.Join(key, ".")
	for _, l := range labels {
		name += " " + l.Name + "=" + l.Value
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.got == nil {
		r.got = map[string]float32{}
	}
	r.got[name] += val
	return &emptypb.Empty{}, nil
}

func (r *recorder) IncrCounter(ctx context.Context, q *metricsv1.IncrCounterRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
	return r.note(ctx, "counter", q.Key, q.Val, q.Labels)
}

func (r *recorder) AddSample(ctx context.Context, q *metricsv1.AddSampleRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
	return r.note(ctx, "sample", q.Key, q.Val, q.Labels)
}

func (r *recorder) SetGauge(ctx context.Context, q *metricsv1.SetGaugeRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
	return r.note(ctx, "gauge", q.Key, q.Val, q.Labels)
}

// BrokerClient gives the recorder as the host service.
func (r *recorder) BrokerClient(c pluginsdk.ServiceClient) bool {
	m, ok := c.(*metricsv1.MetricsServiceClient)
	if ok {
		m.MetricsClient = r
	}
	return ok
}

// none is a SPIRE that offers no host service.
type none struct{}

func (none) BrokerClient(pluginsdk.ServiceClient) bool { return false }

func ready() []string { return nil }

func newSet(t *testing.T, ready func() []string) *pluginmetrics.Set {
	t.Helper()
	s := pluginmetrics.New("keelson_test", ready)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// open serves a set on an address of its own.
func open(t *testing.T, s *pluginmetrics.Set) string {
	t.Helper()
	address := freeAddress(t)
	d, err := s.Listen(address)
	if err == nil {
		err = d.Use()
	}
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }() // another takes it
	return l.Addr().String()
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }() // it was read
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestEachNumberHasTwoReaders(t *testing.T) {
	s, spire := newSet(t, ready), &recorder{}
	counter := s.Counter("attestations", "Attestations.", "result")
	took := s.Seconds("phase_seconds", "Phases.", "phase")
	s.Gauge("pending", "Pending.", func() float64 { return 7 })
	s.Host(spire)
	counter.Inc("trusted")
	counter.Inc("trusted")
	took.Observe(0.25, "proof")
	_, page := get(t, "http://"+open(t, s)+"/metrics")
	for _, want := range []string{`keelson_test_attestations_total{result="trusted"} 2`, `keelson_test_phase_seconds_sum{phase="proof"} 0.25`,
		"keelson_test_pending 7", "keelson_test_ready 1", "keelson_test_telemetry_lost_total 0"} {
		if !strings.Contains(page, want+"\n") {
			t.Errorf("the page lacks %s", want)
		}
	}
	want := map[string]float32{"counter keelson_test.attestations result=trusted": 2, "sample keelson_test.phase_seconds phase=proof": 0.25,
		"gauge keelson_test.pending": 7, "gauge keelson_test.ready": 1}
	for range 200 {
		spire.mu.Lock()
		got := maps.Clone(spire.got)
		spire.mu.Unlock()
		if maps.Equal(got, want) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("SPIRE has %v, want %v", spire.got, want)
}

func TestThreat24_ASPIREThatHangsHoldsUpNobody(t *testing.T) {
	s := newSet(t, ready)
	spire := &recorder{hang: make(chan struct{})}
	t.Cleanup(func() { close(spire.hang) }) // before the set is closed
	c := s.Counter("events", "Events.")
	s.Host(spire)
	const many = 10_000
	for range many {
		c.Inc()
	}
	_, page := get(t, "http://"+open(t, s)+"/metrics")
	if !strings.Contains(page, fmt.Sprintf("keelson_test_events_total %d\n", many)) {
		t.Error("the plugin's own number is wrong")
	}
	if strings.Contains(page, "keelson_test_telemetry_lost_total 0\n") {
		t.Error("what SPIRE did not take is not counted as lost")
	}
}

func TestThreat24_LabelsAreBounded(t *testing.T) {
	s := newSet(t, ready)
	s.Host(none{})
	c := s.Counter("refusals", "Refusals.", "check")
	for i := range 5000 {
		c.Inc(fmt.Sprint("check-", i))
	}
	_, page := get(t, "http://"+open(t, s)+"/metrics")
	if n := strings.Count(page, "keelson_test_refusals_total{"); n != 257 {
		t.Errorf("%d series, want 256 and one for the rest", n)
	}
	if want := `keelson_test_refusals_total{check="other"} 4744`; !strings.Contains(page, want) {
		t.Errorf("the page lacks %s", want)
	}
}

func TestReadinessIsToldInWords(t *testing.T) {
	var reasons []string
	s := newSet(t, func() []string { return reasons })
	base := "http://" + open(t, s)
	if code, text := get(t, base+"/readyz"); code != http.StatusOK || text != "ready\n" {
		t.Errorf("ready: %d %q", code, text)
	}
	reasons = []string{"the audit log is full", "no reference set is valid"}
	if code, text := get(t, base+"/readyz"); code != http.StatusServiceUnavailable || text != "the audit log is full\nno reference set is valid\n" {
		t.Errorf("not ready: %d %q", code, text)
	}
	if code, _ := get(t, base+"/healthz"); code != http.StatusOK {
		t.Errorf("a plugin that is not ready is not healthy: %d", code)
	}
	if _, page := get(t, base+"/metrics"); !strings.Contains(page, "keelson_test_ready 0\n") {
		t.Error("the gauge says that it is ready")
	}
	if code, _ := get(t, base+"/debug/pprof/"); code != http.StatusNotFound {
		t.Errorf("something else is served: %d", code)
	}
}

func TestAnotherAddressReplacesTheOneInForce(t *testing.T) {
	s := newSet(t, ready)
	first := open(t, s)
	if d, err := s.Listen(first); err != nil { // the same again
		t.Fatal(err)
	} else if err := d.Use(); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	if _, err := s.Listen(taken.Addr().String()); err == nil || !strings.Contains(err.Error(), "metrics.listen") {
		t.Errorf("an address that another has: %v", err)
	}
	d, err := s.Listen(freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Discard(); err != nil { // the rest of the configuration was refused
		t.Fatal(err)
	}
	if code, _ := get(t, "http://"+first+"/healthz"); code != http.StatusOK {
		t.Errorf("the first address: %d", code)
	}
	second := open(t, s)
	if code, _ := get(t, "http://"+second+"/healthz"); code != http.StatusOK {
		t.Errorf("the second address: %d", code)
	}
	if c, err := net.Dial("tcp", first); err == nil {
		_ = c.Close()
		t.Error("the first address is served still")
	}
	if d, err = s.Listen(""); err == nil {
		err = d.Use()
	}
	if err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", second); err == nil {
		_ = c.Close()
		t.Error("the address of a configuration without one is served still")
	}
}

func TestThreat24_WhoOpensConnectionsUsesUpNoFiles(t *testing.T) {
	s := newSet(t, ready)
	address := open(t, s)
	var opened []net.Conn
	for i := range 36 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		opened = append(opened, c)
		if _, err := fmt.Fprintf(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		patience := 20 * time.Second
		if i >= 32 {
			patience = 200 * time.Millisecond
		}
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); (n == 1) != (i < 32) {
			t.Fatalf("connection %d: served: %t, %v", i+1, n == 1, err)
		}
	}
	for _, c := range opened {
		_ = c.Close()
	}
	if code, _ := get(t, "http://"+address+"/healthz"); code != http.StatusOK {
		t.Errorf("when they are gone: %d", code)
	}
}

func TestOnlyLoopbackUnlessItIsSaid(t *testing.T) {
	type block struct {
		Metrics *pluginmetrics.Config `hcl:"metrics"`
	}
	for text, want := range map[string]string{
		`metrics { listen = "127.0.0.1:9468" }`: "",
		`metrics { listen = "[::1]:9468" }`:     "",
		``:                                      "",
		"metrics {\n listen = \"0.0.0.0:9468\"\n allow_remote = true\n}": "",
		`metrics { listen = "0.0.0.0:9468" }`:                            "allow_remote = true",
		`metrics { listen = ":9468" }`:                                   "not an IP address with a port",
		`metrics { listen = "localhost:9468" }`:                          "not an IP address with a port",
		`metrics { }`:                                                    "not an IP address with a port",
		`metrics { port = 9468 }`:                                        "unknown key",
	} {
		var b block
		p := pluginconf.Decode(text, &b)
		if p.Err() == nil {
			b.Metrics.Address(p)
		}
		got := strings.Join(p.List(), "\n")
		if !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func TestTheNamesAreWhatTheListenerShows(t *testing.T) {
	s := newSet(t, ready)
	s.Counter("events", "Events.", "kind")
	s.Bytes("log_bytes", "Logs.", "log")
	names := s.Names()
	slices.Sort(names)
	want := []string{"keelson_test_events_total", "keelson_test_log_bytes", "keelson_test_ready", "keelson_test_telemetry_lost_total"}
	if !slices.Equal(names, want) {
		t.Errorf("%v, want %v", names, want)
	}
}
