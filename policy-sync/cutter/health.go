package cutter

import (
	"fmt"
	"net/http"
	"strings"
	"time"
)

// stuck is after how long without a sign of life the loop counts as hung: a sweep of a very large table takes seconds, and the
// kernel has 15 more for one that it does not answer.
const stuck = time.Minute

// Handler serves /healthz (the loop turns) and /readyz (flows of revoked addresses are cut). A drop that Felix has not programmed
// does not make the node unready, since flows with namespaces that are not enrolled look the same: it is a line of the answer.
func (c *Cutter) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, c.alive(), nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		c.mu.Lock()
		problems, warnings := lines(c.state.problems), lines(c.state.warnings)
		c.mu.Unlock()
		answer(w, problems, warnings)
	})
	return mux
}

func (c *Cutter) alive() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if quiet := c.o.Now().Sub(c.state.beat); quiet > stuck {
		return []string{fmt.Sprintf("loop: no sign of life for %s", quiet.Round(time.Second))}
	}
	return nil
}

func answer(w http.ResponseWriter, problems, warnings []string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	word := "ok"
	if len(problems) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		word = "not ready"
	}
	var b strings.Builder
	b.WriteString(word + "\n")
	for _, p := range problems {
		b.WriteString(p + "\n")
	}
	for _, p := range warnings {
		b.WriteString("warning: " + p + "\n")
	}
	_, _ = w.Write([]byte(b.String())) // a client that has gone needs no answer
}
