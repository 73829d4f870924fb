package revocations_test

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/flows"
)

// TestThreatTheAPIDiesAndComesBack is row 25 of the threats: what was known is kept, and what changed meanwhile is known soon
// after the API is back.
func TestThreatTheAPIDiesAndComesBack(t *testing.T) {
	a := newAPI(t)
	a.node("fra-1", true, "192.0.2.1")
	a.set(v1alpha1.RevokedSet, "10.1.0.2/32")
	config := a.own()
	p := newProxy(t, strings.TrimPrefix(config.Host, "https://"))
	config.Host = "https://" + p.address
	var w worlds
	a.watch(config, w.update)
	a.until(&w, "the set", func(w flows.World) bool { return w.Known && w.Problem == "" && len(w.Nets) == 1 })
	p.stop()
	away := a.until(&w, "that the API is away", func(w flows.World) bool { return w.Problem != "" })
	if !away.Known || len(away.Nets) != 1 || away.Hosts[ip("192.0.2.1")] == "" {
		t.Errorf("without the API it knows %+v", away)
	}
	time.Sleep(5 * time.Second)
	a.set(v1alpha1.RevokedSet, "10.1.0.2/32", "10.1.0.3/32")
	back := p.start()
	a.until(&w, "the second address", func(w flows.World) bool { return len(w.Nets) == 2 })
	if took := time.Since(back); took > 15*time.Second {
		t.Errorf("the API was back for %s before the set was read", took)
	} else {
		t.Logf("the set was read %s after the API was back", took)
	}
}

// proxy is the way to the API server, which can be cut.
type proxy struct {
	t               *testing.T
	address, server string

	mu       sync.Mutex
	listener net.Listener
	open     []net.Conn
}

func newProxy(t *testing.T, server string) *proxy {
	p := &proxy{t: t, address: "127.0.0.1:0", server: server}
	p.start()
	t.Cleanup(p.stop)
	return p
}

func (p *proxy) start() time.Time {
	l, err := net.Listen("tcp", p.address)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	p.listener, p.address = l, l.Addr().String()
	p.mu.Unlock()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", p.server)
			if err != nil {
				_ = c.Close()
				continue
			}
			p.mu.Lock()
			p.open = append(p.open, c, s)
			p.mu.Unlock()
			go func() { _, _ = io.Copy(s, c) }()
			go func() { _, _ = io.Copy(c, s) }()
		}
	}()
	return time.Now()
}

func (p *proxy) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.listener.Close()
	for _, c := range p.open {
		_ = c.Close()
	}
	p.open = nil
}
