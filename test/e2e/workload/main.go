// Command workload is the program inside the scenarios' containers. It speaks plain HTTP and TCP: where there is mutual TLS, it is
// the proxy's beside it. What it sees it prints as JSON, one object a line.
//
//	workload pause                         waits to be ended
//	workload serve [flags]                 answers HTTP (-http) and echoes TCP (-tcp); takes connections at -ready once -when holds -text
//	workload get [flags] URL               one request on a connection of its own
//	workload dial [flags] HOST:PORT        one TCP connection and one echo
//	workload probe [flags] TARGET…         the same again and again, for -for; TARGET is a URL or tcp:HOST:PORT
//	workload until [flags] TARGET          the same until it succeeds, for at most -for
//	workload hold [flags] HOST:PORT        one TCP connection, kept open and used for -for; tells when it was cut
//	workload await [flags] NAME.SIGN       waits for a sign of a probe of that name: began, changed
//	workload stop NAME                     ends the probe, or the connection, of that name
//	workload svid [flags]                  asks the SPIFFE Workload API for an identity
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], &lines{to: os.Stdout}, os.Stderr))
}

func run(ctx context.Context, args []string, out *lines, stderr io.Writer) int {
	if len(args) == 0 {
		args = []string{"help"}
	}
	var err error
	switch args[0] {
	case "pause":
		<-ctx.Done()
	case "serve":
		err = serve(ctx, args[1:])
	case "get", "dial", "probe":
		err = probe(ctx, args[0], args[1:], out)
	case "until":
		err = until(ctx, args[1:], out)
	case "hold":
		err = hold(ctx, args[1:], out)
	case "await", "stop":
		err = sign(ctx, args[0], args[1:])
	case "svid":
		err = svid(ctx, args[1:], out)
	default:
		err = errors.New("usage: workload pause|serve|get|dial|probe|until|hold|await|stop|svid")
	}
	if err != nil && ctx.Err() == nil {
		_, _ = fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// lines writes JSON objects, a line each.
type lines struct {
	mu sync.Mutex
	to io.Writer
}

func (l *lines) print(object any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return json.NewEncoder(l.to).Encode(object)
}
