package pluginmetrics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"github.com/keelson-project/keelson/nodeattestor/pluginconf"
)

// Config is the block `metrics` of a plugin's configuration.
type Config struct {
	// Listen is an IP address and a port.
	Listen string `hcl:"listen"`
	// AllowRemote lets Listen be another address than a loopback one: whoever reaches it reads the numbers, and
	// why the plugin is not ready, without proving who he is.
	AllowRemote bool `hcl:"allow_remote"`
}

// Address is where to listen, "" for nowhere. Problems are noted under the key "metrics".
func (c *Config) Address(p *pluginconf.Problems) string {
	if c == nil {
		return ""
	}
	at, err := netip.ParseAddrPort(c.Listen)
	switch {
	case err != nil:
		p.Add("metrics.listen", "%q is not an IP address with a port such as 127.0.0.1:9468", c.Listen)
	case !at.Addr().IsLoopback() && !c.AllowRemote:
		p.Add("metrics.listen", "%s can be reached from elsewhere by anybody; use 127.0.0.1, or say allow_remote = true", c.Listen)
	}
	return c.Listen
}

// maxConnections bounds what the listener takes at once: it must not use up the files that attestations need.
const maxConnections = 32

// Door is an address that is open, but not used yet.
type Door struct {
	set     *Set
	address string
	listen  net.Listener // nil for a door to nowhere, and for one that is in force already
	server  *http.Server
	ended   chan struct{}
}

// Listen opens an address, "" for none, beside the one in force. The caller calls Use or Discard.
func (s *Set) Listen(address string) (*Door, error) {
	d := &Door{set: s, address: address}
	s.mu.Lock()
	standing := s.door
	s.mu.Unlock()
	if address == "" || standing != nil && standing.address == address {
		return d, nil
	}
	var config net.ListenConfig
	l, err := config.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("metrics.listen: %w", err)
	}
	d.listen = netutil.LimitListener(l, maxConnections)
	return d, nil
}

// Discard gives the address up.
func (d *Door) Discard() error {
	if d.listen == nil {
		return nil
	}
	return d.listen.Close()
}

// Use serves on the address in place of the one before.
func (d *Door) Use() error {
	d.set.mu.Lock()
	old := d.set.door
	switch {
	case d.set.closed:
		d.set.mu.Unlock()
		return d.Discard()
	case old != nil && old.address == d.address:
		d.set.mu.Unlock()
		return nil
	case d.listen == nil:
		d.set.door = nil
	default:
		d.set.door = d
		d.serve()
	}
	d.set.mu.Unlock()
	return old.end()
}

func (d *Door) serve() {
	d.server = &http.Server{Handler: d.set.Handler(), ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	d.ended = make(chan struct{})
	go func() {
		defer close(d.ended)
		_ = d.server.Serve(d.listen) // ends when the door is closed
	}()
}

// end closes a door that is in use; nil is none.
func (d *Door) end() error {
	if d == nil {
		return nil
	}
	err := d.server.Close() // probes and scrapes need no farewell
	<-d.ended
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Handler answers /metrics (Prometheus), /healthz (200 while the plugin runs) and /readyz (200 when it is ready,
// else 503 with the reasons, one a line).
func (s *Set) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if reasons := s.ready(); len(reasons) > 0 {
			answer(w, http.StatusServiceUnavailable, strings.Join(reasons, "\n"))
			return
		}
		answer(w, http.StatusOK, "ready")
	})
	return mux
}

func answer(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = fmt.Fprintln(w, text) // who asked may have gone
}
