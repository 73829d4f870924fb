// Package walkthrough is what the runnable examples have in common: a folder with real programs in
// it, commands that are shown with what they print, and numbered steps that check themselves.
package walkthrough

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/parts"
)

// Folder is the folder that everything happens in, with what runs there.
type Folder struct {
	Dir   string
	Out   io.Writer
	Group *cluster.Group
	// ServerPort and MetricsPort are free TCP ports of the loopback address.
	ServerPort, MetricsPort string

	paths map[string]string // programs by their names
}

// New makes an empty folder. The caller closes it.
func New(out io.Writer) (*Folder, error) {
	dir, err := os.MkdirTemp("", "keelson-") // short: the kernel takes 107 bytes for a socket's path
	if err != nil {
		return nil, err
	}
	return &Folder{Dir: dir, Out: out, Group: cluster.NewGroup(dir), paths: map[string]string{}}, nil
}

// Programs builds SPIRE's server and agent and our commands (such as "cmd/keelson") where they are
// not built yet, links them into bin, and finds the ports.
func (f *Folder) Programs(ctx context.Context, commands ...string) error {
	if err := os.MkdirAll(f.Path("bin"), 0o700); err != nil {
		return err
	}
	spire, err := parts.Ensure(ctx, f.Out, "spire-server", "spire-agent")
	if err != nil {
		return err
	}
	ours, err := parts.Commands(ctx, f.Out, commands...)
	if err != nil {
		return err
	}
	for _, paths := range []map[string]string{spire, ours} {
		for name, path := range paths {
			f.paths[filepath.Base(name)] = path
			if err := os.Symlink(path, f.Path("bin/"+filepath.Base(name))); err != nil {
				return err
			}
		}
	}
	for _, port := range []*string{&f.ServerPort, &f.MetricsPort} {
		n, err := cluster.FreePort()
		if err != nil {
			return err
		}
		*port = fmt.Sprint(n)
	}
	return nil
}

// Close ends what was started and removes the folder.
func (f *Folder) Close() error { return errors.Join(f.Group.Close(), os.RemoveAll(f.Dir)) }

// Path is that of a file in the folder.
func (f *Folder) Path(name string) string { return filepath.Join(f.Dir, name) }

// Program is the path of one of the programs, by its name.
func (f *Folder) Program(name string) string { return f.paths[name] }

// Write writes a file that only its owner may read.
func (f *Folder) Write(name, content string) error {
	return os.WriteFile(f.Path(name), []byte(content), 0o600)
}

// Say writes a line.
func (f *Folder) Say(format string, args ...any) {
	_, _ = fmt.Fprintf(f.Out, format+"\n", args...) // a terminal that is gone ends nothing
}

// Show writes text, indented.
func (f *Folder) Show(text string) {
	for line := range strings.Lines(text) {
		f.Say("    %s", strings.TrimRight(line, "\n"))
	}
}

// Do runs a command in the folder as a person would, and shows it with what it prints.
func (f *Folder) Do(ctx context.Context, program string, args ...string) (string, error) {
	f.Say("  $ %s %s", program, strings.Join(args, " "))
	printed, err := f.Quietly(ctx, program, args...)
	f.Show(printed)
	return printed, err
}

// Quietly runs a command in the folder and returns what it prints, which is in the error as well.
func (f *Folder) Quietly(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, f.paths[program], args...) // #nosec G204 -- one that Programs found
	cmd.Dir = f.Dir
	var printed bytes.Buffer
	cmd.Stdout, cmd.Stderr = &printed, &printed
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(printed.String()))
	}
	return printed.String(), err
}

// Start starts a program that stays; its output goes to a file beside the others.
func (f *Folder) Start(name, program string, args ...string) (*cluster.Process, error) {
	f.Say("  $ %s %s &", program, strings.Join(args, " "))
	return f.Group.Start(cluster.Command{Name: name, Path: f.paths[program], Args: args, Dir: f.Dir})
}

// Curl shows what a plugin's listener for metrics answers: the lines that begin with one of the
// names, or all. Histograms' buckets are left out.
func (f *Folder) Curl(ctx context.Context, path string, names ...string) error {
	url := "http://127.0.0.1:" + f.MetricsPort + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	f.Say("  $ curl %s", url)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	for line := range strings.Lines(string(body)) {
		if strings.Contains(line, "_seconds_bucket") {
			continue
		}
		if len(names) == 0 || slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(line, name) }) {
			f.Show(line)
		}
	}
	return nil
}

// Step is one thing that an example shows.
type Step struct {
	Title string
	Run   func(context.Context) error
}

// Walk shows the steps one after the other, and ends at the first that fails. With hold it then waits
// until the context ends.
func (f *Folder) Walk(ctx context.Context, hold bool, steps ...Step) error {
	f.Say("Everything happens in %s.", f.Dir)
	for i, s := range steps {
		f.Say("\n%d. %s", i+1, s.Title)
		if err := s.Run(ctx); err != nil {
			return fmt.Errorf("step %d: %s: %w", i+1, s.Title, err)
		}
	}
	if hold {
		f.Say("\nEverything runs on, in %s; Ctrl-C ends it.", f.Dir)
		<-ctx.Done()
	}
	return nil
}

// Until asks every 100 ms until ok says yes, for a minute.
func Until(ctx context.Context, what string, ok func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		done, err := ok(ctx)
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s: not so in time", what), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Main runs an example, whose only flag is -hold, until it ends or a signal ends it.
func Main(run func(ctx context.Context, out io.Writer, hold bool) error) {
	hold := flag.Bool("hold", false, "keep everything running at the end, until Ctrl-C")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, os.Stdout, *hold); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:gocritic // run has cleaned up, and stop only ends the listening for signals.
	}
}
