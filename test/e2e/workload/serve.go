package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

func serve(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	web := flags.String("http", "", "address for HTTP")
	echo := flags.String("tcp", "", "address for TCP")
	var r readiness
	flags.StringVar(&r.address, "ready", "", "address that takes connections once this pod is ready, for a readiness probe")
	flags.StringVar(&r.file, "when", "", "file that tells whether it is (of a downward API volume)")
	flags.StringVar(&r.text, "text", "", "what is in the file then")
	flags.DurationVar(&r.after, "after", 0, "how much later it is")
	if err := flags.Parse(args); err != nil {
		return err
	}
	failed := make(chan error, 3)
	if *web != "" {
		server := &http.Server{Addr: *web, Handler: http.HandlerFunc(answer), ReadHeaderTimeout: 5 * time.Second}
		go func() { failed <- server.ListenAndServe() }()
	}
	if *echo != "" {
		l, err := net.Listen("tcp", *echo)
		if err != nil {
			return fmt.Errorf("workload: %w", err)
		}
		go func() { failed <- accept(l) }()
	}
	if r.address != "" {
		go func() {
			if err := r.serve(ctx); err != nil {
				failed <- err
			}
		}()
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("workload: %w", err)
	}
}

func answer(w http.ResponseWriter, r *http.Request) {
	name, err := os.Hostname()
	if err != nil {
		name = "unknown"
	}
	a := said.Answer{Name: name, Method: r.Method, Path: r.URL.Path}
	for _, element := range strings.Split(r.Header.Get("X-Forwarded-Client-Cert"), ";") {
		if uri, ok := strings.CutPrefix(element, "URI="); ok {
			a.Caller = uri
		}
	}
	_ = json.NewEncoder(w).Encode(a) // a caller that went away needs no answer
}

func accept(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(conn, conn) // until the caller ends
			_ = conn.Close()
		}()
	}
}

// readiness is when a pod may be sent to, as it finds out itself.
type readiness struct {
	address, file, text string
	after               time.Duration
}

// serve takes connections once the file holds the text.
func (r readiness) serve(ctx context.Context) error {
	for {
		content, err := os.ReadFile(r.file)
		if err == nil && strings.Contains(string(content), r.text) {
			break
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	if err := pause(ctx, r.after); err != nil {
		return err
	}
	l, err := net.Listen("tcp", r.address)
	if err != nil {
		return err
	}
	return accept(l)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
