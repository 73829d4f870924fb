// Command echo is an application without any security of its own, to stand behind a proxy and in front of one.
//
//	echo serve ADDRESS           answers every request with what it saw of it, as JSON
//	echo call METHOD URL         makes one request on a new connection, and prints what came of it as JSON
//	echo peer ADDRESS            begins a TLS handshake without a certificate, and prints the server's chain in PEM
package main

import (
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		return serve(args[1])
	case len(args) == 3 && args[0] == "call":
		return json.NewEncoder(stdout).Encode(call(args[1], args[2]))
	case len(args) == 2 && args[0] == "peer":
		return peer(args[1], stdout)
	default:
		return errors.New("usage: echo serve ADDRESS | call METHOD URL | peer ADDRESS")
	}
}

// Seen is what the server saw of a request. Who the caller is it learns from its proxy alone.
type Seen struct {
	Method string `json:"method"`
	Path   string `json:"path"`
	// Peer is the header X-Forwarded-Client-Cert, Remote the other end of the connection: the proxy beside it, if there is one.
	Peer   string `json:"peer"`
	Remote string `json:"remote"`
}

func serve(address string) error {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		seen := Seen{Method: r.Method, Path: r.URL.Path, Peer: r.Header.Get("X-Forwarded-Client-Cert"), Remote: r.RemoteAddr}
		_ = json.NewEncoder(w).Encode(seen) // a caller that went away misses its answer
	})
	server := &http.Server{Addr: address, Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	return server.ListenAndServe()
}

// Answer is what a call came to.
type Answer struct {
	Status int    `json:"status"`
	Body   string `json:"body"`
	Error  string `json:"error"`
}

func call(method, url string) Answer {
	req, err := http.NewRequest(method, url, http.NoBody)
	if err != nil {
		return Answer{Error: err.Error()}
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return Answer{Error: err.Error()}
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return Answer{Status: resp.StatusCode, Error: err.Error()}
	}
	return Answer{Status: resp.StatusCode, Body: string(body)}
}

func peer(address string, stdout io.Writer) error {
	raw, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = raw.Close() }() // nothing is sent on it
	if err := raw.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	// #nosec G402 -- the chain is printed, not trusted; whoever asked judges it.
	conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"istio"}})
	if err := conn.Handshake(); err != nil {
		return err
	}
	for _, cert := range conn.ConnectionState().PeerCertificates {
		if err := pem.Encode(stdout, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}); err != nil {
			return err
		}
	}
	return nil
}
