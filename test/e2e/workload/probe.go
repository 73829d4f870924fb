package main

import (
	"bytes"
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
	"sync"
	"syscall"
	"time"

	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

type prober struct {
	method, contains string
	identity         string
	timeout, every   time.Duration
	signs            announcing
}

// probe serves get, dial and probe: they differ in how often they try.
func probe(ctx context.Context, command string, args []string, out *lines) error {
	var p prober
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.StringVar(&p.method, "method", http.MethodGet, "HTTP method")
	flags.DurationVar(&p.timeout, "timeout", 2*time.Second, "how long to wait for an answer")
	flags.DurationVar(&p.every, "every", 50*time.Millisecond, "pause between two tries")
	flags.StringVar(&p.contains, "contains", "", "a try succeeds when this is in the answer, which need not be one of ours")
	flags.StringVar(&p.identity, "identity", "", `what to show of oneself by TLS: "svid", or a certificate and its key as base64 of PEM; plain text when empty`)
	flags.StringVar(&p.signs.name, "name", "", "name of the signs that tell how it goes and that stop it (probe)")
	flags.BoolVar(&p.signs.before, "open", true, "tries succeed before the change that is waited for (probe)")
	length := flags.Duration("for", 10*time.Second, "how long to go on")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if command != "probe" {
		if flags.NArg() != 1 {
			return fmt.Errorf("workload: %s wants one target", command)
		}
		target := flags.Arg(0)
		if command == "dial" {
			target = "tcp:" + target
		}
		return out.print(p.try(ctx, target))
	}
	ctx, cancel := context.WithTimeout(ctx, *length)
	defer cancel()
	ctx, stop := untilStopped(ctx, p.signs.name)
	defer stop()
	var all sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, target := range flags.Args() {
		all.Go(func() {
			if err := p.again(ctx, target, out); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// until tries until it succeeds, and prints the last try.
func until(ctx context.Context, args []string, out *lines) error {
	p := prober{method: http.MethodGet}
	flags := flag.NewFlagSet("until", flag.ContinueOnError)
	flags.DurationVar(&p.timeout, "timeout", 2*time.Second, "how long to wait for an answer")
	length := flags.Duration("for", time.Minute, "how long to go on")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("workload: until wants one target")
	}
	for end := time.Now().Add(*length); ; {
		t := p.try(ctx, flags.Arg(0))
		if t.OK {
			return out.print(t)
		}
		if time.Now().After(end) {
			return errors.Join(fmt.Errorf("workload: not within %s: %s", *length, t.Error), out.print(t))
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// again starts a try every p.every, whether the last one has ended or not: a try that hangs must not hide that the next succeeds.
func (p *prober) again(ctx context.Context, target string, out *lines) error {
	ticker := time.NewTicker(p.every)
	defer ticker.Stop()
	var running sync.WaitGroup
	defer running.Wait()
	failed := make(chan error, 1)
	for {
		running.Go(func() {
			t := p.try(context.WithoutCancel(ctx), target)
			_ = out.print(t) // a reader that went away ends us soon
			if err := p.signs.saw(t.OK); err != nil {
				select {
				case failed <- err:
				default: // one is enough
				}
			}
		})
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("workload: %w", err)
		case <-ticker.C:
		}
	}
}

func (p *prober) try(ctx context.Context, target string) said.Try {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	t := said.Try{Target: target, Begun: time.Now().UnixNano()}
	var err error
	if address, ok := strings.CutPrefix(target, "tcp:"); ok {
		err = dial(ctx, address)
	} else {
		err = p.get(ctx, target, &t)
	}
	t.Ended, t.OK = time.Now().UnixNano(), err == nil
	if err != nil {
		t.Error, t.Kind = err.Error(), kind(err, t.Status)
	}
	return t
}

// kind tells how a try failed; status is HTTP's, if there was an answer.
func kind(err error, status int) said.Kind {
	var name *net.DNSError
	var op *net.OpError
	var timeout net.Error
	switch {
	case status != 0:
		return said.Status
	case errors.As(err, &name):
		return said.Unresolved
	case errors.As(err, &op) && op.Op == "remote error": // crypto/tls: an alert
		return said.TLS
	case errors.Is(err, syscall.ECONNREFUSED):
		return said.Refused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return said.Unreachable
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return said.Ended
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return said.Timeout
	}
	return said.Other
}

// dial connects and has four bytes echoed.
func dial(ctx context.Context, address string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // all that was wanted has been read
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	return echo(conn, []byte("ping"))
}

func echo(conn net.Conn, message []byte) error {
	if _, err := conn.Write(message); err != nil {
		return err
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !bytes.Equal(got, message) {
		return errors.New("another echo")
	}
	return nil
}

// get asks on a connection of its own, so that each request is decided anew as far as this program can see to it.
func (p *prober) get(ctx context.Context, url string, t *said.Try) error {
	r, err := http.NewRequestWithContext(ctx, p.method, url, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	if p.identity != "" {
		if transport.TLSClientConfig, err = showing(ctx, p.identity); err != nil {
			return err
		}
	}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()                   // it was read
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20)) // a proxy's configuration is long
	if err != nil {
		return err
	}
	t.Status = resp.StatusCode
	if p.contains != "" {
		if !bytes.Contains(body, []byte(p.contains)) {
			return errors.New("the answer does not contain it")
		}
		return nil
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	return json.Unmarshal(body, &t.Answer)
}

// hold keeps a connection as busy as it lets itself be. What a cut connection looks like from here is that an echo does not come back:
// so one that is late is waited for, and only one that is missing at the end counts.
func hold(ctx context.Context, args []string, out *lines) error {
	flags := flag.NewFlagSet("hold", flag.ContinueOnError)
	length := flags.Duration("for", 10*time.Second, "how long to go on")
	patience := flags.Duration("patience", time.Second, "how long an echo has to be missing at the end for the connection to count as cut")
	name := flags.String("name", "", "name of the signs that tell that it stands, and that stop it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("workload: hold wants one target")
	}
	ctx, cancel := context.WithTimeout(ctx, *length)
	defer cancel()
	ctx, stop := untilStopped(ctx, *name)
	defer stop()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", flags.Arg(0))
	if err != nil {
		return out.print(said.Held{Error: err.Error(), At: time.Now().UnixNano()})
	}
	defer func() { _ = conn.Close() }() // the process is ending
	if err := out.print(said.Held{Open: true, At: time.Now().UnixNano()}); err != nil {
		return err
	}
	signs := announcing{name: *name, before: true}
	end := said.Held{At: time.Now().UnixNano()}
	for ctx.Err() == nil {
		err := patientEcho(ctx, conn, *patience)
		if errors.Is(err, errStopped) {
			break
		}
		if err != nil {
			end.Error = err.Error()
			return out.print(end)
		}
		end.Echoes++
		end.At = time.Now().UnixNano()
		if err := signs.saw(true); err != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
	end.Open = true
	return out.print(end)
}

// errStopped says that somebody had enough before the echo was back.
var errStopped = errors.New("stopped")

// patientEcho has four bytes echoed, however long that takes. When the context ends first, it is an error if they have been missing
// for longer than patience.
func patientEcho(ctx context.Context, conn net.Conn, patience time.Duration) error {
	message, sent := []byte("ping"), time.Now()
	if _, err := conn.Write(message); err != nil {
		return err
	}
	got := make([]byte, 0, len(message))
	for len(got) < len(message) {
		if err := conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			return err
		}
		n, err := conn.Read(got[len(got):cap(got)])
		got = got[:len(got)+n]
		missing := time.Since(sent)
		switch {
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case len(got) == len(message):
		case ctx.Err() != nil && missing > patience:
			return fmt.Errorf("an echo has been missing for %.1f s", missing.Seconds())
		case ctx.Err() != nil:
			return errStopped
		}
	}
	if !bytes.Equal(got, message) {
		return errors.New("another echo")
	}
	return nil
}
