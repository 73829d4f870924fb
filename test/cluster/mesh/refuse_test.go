package mesh_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// socket: pilot-agent that finds no socket of SPIRE must end, not serve certificates from elsewhere.
func (m *mall) socket(t *testing.T) {
	w := *m.world
	w.sockets = filepath.Join(w.dir, "nowhere")
	if err := os.MkdirAll(w.sockets, 0o755); err != nil {
		t.Fatal(err)
	}
	p := w.create("shop", "orphan", true)
	m.pods = w.pods
	if out, err := p.redirect(); err != nil {
		t.Fatal(err, out)
	}
	ctx, cancel := context.WithTimeout(m.ctx, 20*time.Second)
	defer cancel()
	out, err := p.command(ctx, *p.proxy()).CombinedOutput()
	if err == nil || ctx.Err() != nil || !strings.Contains(string(out), "no socket found") {
		t.Errorf("a proxy without SPIRE's socket: %v: %s", err, out)
	}
}

// validation: the init container fails in a pod whose network is as it was made.
func (m *mall) validation(t *testing.T) {
	p := m.create("shop", "bare", true)
	ctx, cancel := context.WithTimeout(m.ctx, 30*time.Second)
	defer cancel()
	out, err := p.command(ctx, p.spec.Spec.InitContainers[0]).CombinedOutput()
	if err == nil || ctx.Err() != nil || !strings.Contains(string(out), "validation failed") {
		t.Errorf("validation in a pod without redirection: %v: %s", err, out)
	}
}
