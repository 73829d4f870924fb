package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// Answer is what a server says to a caller that it lets in.
type Answer struct {
	Name   string `json:"name"`
	Node   string `json:"node"`
	Caller string `json:"caller"`
}

// serve answers over mutual TLS for as long as it runs. It listens only once it has an identity, and asks again until then.
func serve(ctx context.Context, args []string, stderr io.Writer) error {
	c := newCommon("serve")
	listen := c.set.String("listen", ":8443", "address to listen on")
	allow := c.set.String("allow", "/etc/keelson/allow", "file of SPIFFE IDs that may call, one a line; read for every connection")
	name := c.set.String("name", "", "what to call itself in answers")
	node := c.set.String("node", "", "the node it runs on, for answers")
	if err := c.set.Parse(args); err != nil {
		return err
	}
	source, err := c.source(ctx, stderr)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }() // the process is ending
	config := tlsconfig.MTLSServerConfig(fresh{source}, source, fromFile(*allow))
	listener, err := tls.Listen("tcp", *listen, config)
	if err != nil {
		return fmt.Errorf("workload: %w", err)
	}
	server := &http.Server{
		ReadHeaderTimeout: 5 * time.Second, ErrorLog: log.New(stderr, "", log.LstdFlags),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			answer := Answer{Name: *name, Node: *node, Caller: r.TLS.PeerCertificates[0].URIs[0].String()}
			_ = json.NewEncoder(w).Encode(answer) // a caller that went away needs no answer
		}),
	}
	server.SetKeepAlivesEnabled(false) // each call is a handshake of its own, so that each is decided anew
	go func() {
		<-ctx.Done()
		_ = server.Close() // the process is ending
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("workload: %w", err)
	}
	return nil
}

// source waits for an identity. An agent that has none for us yet may have one in a moment, so this goes on until it is ended.
func (c *common) source(ctx context.Context, stderr io.Writer) (*workloadapi.X509Source, error) {
	for {
		try, cancel := context.WithTimeout(ctx, c.timeout)
		source, err := workloadapi.NewX509Source(try, c.client())
		cancel()
		if err == nil {
			return source, nil
		}
		_, _ = fmt.Fprintf(stderr, "no identity yet: %v\n", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// fresh is a source that does not offer an SVID beyond its end. The Workload API's source keeps the last one that it was given;
// peers would refuse it, and saying so here gives the honest error.
type fresh struct{ *workloadapi.X509Source }

func (f fresh) GetX509SVID() (*x509svid.SVID, error) {
	svid, err := f.X509Source.GetX509SVID()
	if err != nil {
		return nil, err
	}
	if end := svid.Certificates[0].NotAfter; time.Now().After(end) {
		return nil, fmt.Errorf("workload: own identity ended at %s and was not renewed", end.Format(time.RFC3339))
	}
	return svid, nil
}

// fromFile lets callers in whose ID the file holds. A file that cannot be read lets nobody in.
func fromFile(path string) tlsconfig.Authorizer {
	return func(caller spiffeid.ID, _ [][]*x509.Certificate) error {
		content, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("workload: %s may not call: %w", caller, err)
		}
		lines := bufio.NewScanner(bytes.NewReader(content))
		for lines.Scan() {
			if strings.TrimSpace(lines.Text()) == caller.String() {
				return nil
			}
		}
		return fmt.Errorf("workload: %s may not call", caller)
	}
}

// Call is what `workload call` prints.
type Call struct {
	OK     bool   `json:"ok"`
	Self   string `json:"self,omitempty"`
	Peer   string `json:"peer,omitempty"`
	Answer Answer `json:"answer,omitzero"`
	// Kind tells refusals apart: those of SVID.Kind, and "refused" (the server's TLS refused us, or we refused its
	// identity), "unreachable" (no connection).
	Kind  string `json:"kind,omitempty"`
	Error string `json:"error,omitempty"`
}

func call(ctx context.Context, args []string, stdout io.Writer) error {
	c := newCommon("call")
	expect := c.set.String("expect-id", "", "SPIFFE ID that the server must prove")
	if err := c.set.Parse(args); err != nil {
		return err
	}
	if c.set.NArg() != 1 {
		return errors.New("workload: call takes one URL")
	}
	id, err := spiffeid.FromString(*expect)
	if err != nil {
		return fmt.Errorf("workload: -expect-id: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	return json.NewEncoder(stdout).Encode(c.call(ctx, id, c.set.Arg(0)))
}

func (c *common) call(ctx context.Context, expect spiffeid.ID, url string) Call {
	first, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr(c.socket))
	if err != nil {
		return Call{Kind: kind(err), Error: err.Error()}
	}
	result := Call{Self: first.ID.String()}
	source, err := workloadapi.NewX509Source(ctx, c.client())
	if err != nil {
		result.Kind, result.Error = kind(err), err.Error()
		return result
	}
	defer func() { _ = source.Close() }() // the process is ending
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(expect)),
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		result.Kind, result.Error = "error", err.Error()
		return result
	}
	resp, err := client.Do(req)
	if err != nil {
		result.Kind, result.Error = callKind(err), err.Error()
		return result
	}
	defer func() { _ = resp.Body.Close() }() // read to its end below
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&result.Answer); err != nil {
		result.Kind, result.Error = "error", err.Error()
		return result
	}
	result.OK, result.Peer = true, resp.TLS.PeerCertificates[0].URIs[0].String()
	return result
}

func callKind(err error) string {
	var opErr *net.OpError
	switch {
	case errors.As(err, &opErr) && opErr.Op == "dial", errors.Is(err, context.DeadlineExceeded):
		return "unreachable"
	}
	return "refused"
}
