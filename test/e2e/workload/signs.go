package main

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// signs are files by which a program that runs in a container and one that is run beside it later tell each other something: the
// one place there that everybody may write to, whatever the pod's security context says.
const signs = "/dev/shm"

// Signs of a probe, after its name.
const (
	began   = ".began"   // a try had the outcome that all have before the change
	changed = ".changed" // a try has had the other one
	stop    = ".stop"    // put up from outside: it is enough
)

func putUp(sign string) error {
	return os.WriteFile(filepath.Join(signs, filepath.Base(sign)), nil, 0o600)
}

// isUp tells whether a sign has been put up. An error counts as no: what waits for one has a limit.
func isUp(sign string) bool {
	_, err := os.Stat(filepath.Join(signs, filepath.Base(sign)))
	return err == nil
}

// sign serves "await" and "stop".
func sign(ctx context.Context, command string, args []string) error {
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	length := flags.Duration("for", 30*time.Second, "how long to wait")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return fmt.Errorf("workload: %s wants one sign", command)
	}
	if command == "stop" {
		return putUp(flags.Arg(0) + stop)
	}
	ctx, cancel := context.WithTimeout(ctx, *length)
	defer cancel()
	for !isUp(flags.Arg(0)) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("workload: %s was not put up in %s: %w", flags.Arg(0), *length, fs.ErrNotExist)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// untilStopped ends the context it returns once somebody has put up the stop sign of that name.
func untilStopped(ctx context.Context, name string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	if name == "" {
		return ctx, cancel
	}
	go func() {
		for ctx.Err() == nil && !isUp(name+stop) {
			time.Sleep(20 * time.Millisecond)
		}
		cancel()
	}()
	return ctx, cancel
}

// announcing puts up the signs of a probe, each once.
type announcing struct {
	name   string // none: nothing is put up
	before bool   // the outcome of tries before the change

	mu           sync.Mutex
	begun, other bool
}

func (a *announcing) saw(ok bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.name == "":
		return nil
	case ok == a.before && !a.begun:
		a.begun = true
		return putUp(a.name + began)
	case ok != a.before && a.begun && !a.other:
		a.other = true
		return putUp(a.name + changed)
	}
	return nil
}
