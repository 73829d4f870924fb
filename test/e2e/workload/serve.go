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
	if err := flags.Parse(args); err != nil {
		return err
	}
	failed := make(chan error, 2)
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
