// Command scale measures policy-sync against a real etcd and a real kube-apiserver (with Calico's
// API server and, at the first size, a real SPIRE server), with worlds of a given number of nodes,
// pods and policies. It prints a table and writes the same as JSON. Run it with `make bench-scale`.
//
// No kubelet runs: the command writes the statuses that kubelets would report. Every figure is a
// ratio within the run, or a time or a size beside the limit that the project promises for it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// size is one world. A run grows from each size to the next.
type size struct{ nodes, pods, policies int }

// String is "nodes/pods/policies".
func (s size) String() string { return fmt.Sprintf("%d/%d/%d", s.nodes, s.pods, s.policies) }

// figure is one line of the table. AtMost is zero where the figure is for information.
type figure struct {
	Size   string  `json:"size"`
	What   string  `json:"what"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	AtMost float64 `json:"atMost,omitempty"`
	Missed bool    `json:"missed"`
	Detail string  `json:"detail,omitempty"`
}

func main() {
	if err := mainErr(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

// options are the command's flags.
type options struct {
	sizes   []size
	json    string
	runs    int
	churn   time.Duration
	keepLog string
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("scale", flag.ContinueOnError)
	sizes := flags.String("sizes", "100/2000/20,1000/20000/200", "worlds to grow through, each nodes/pods/policies")
	flags.StringVar(&o.json, "json", "", "file that takes the figures as JSON")
	flags.IntVar(&o.runs, "runs", 20, "how many verdicts are changed, one after the other, for each figure of times")
	flags.DurationVar(&o.churn, "churn", 30*time.Second, "for how long pods are rolled and a large policy is applied")
	flags.StringVar(&o.keepLog, "log", "", "file that takes policy-sync's log")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	for text := range strings.SplitSeq(*sizes, ",") {
		s, err := parseSize(text)
		if err != nil {
			return o, err
		}
		o.sizes = append(o.sizes, s)
	}
	return o, nil
}

func parseSize(text string) (size, error) {
	parts := strings.Split(text, "/")
	var n [3]int
	if len(parts) != len(n) {
		return size{}, fmt.Errorf("size %q: want nodes/pods/policies", text)
	}
	for i, p := range parts {
		v, err := strconv.Atoi(p)
		if err != nil || v < 1 {
			return size{}, fmt.Errorf("size %q: %q is no positive number", text, p)
		}
		n[i] = v
	}
	if n[0] > maxNodes || n[1] > n[0]*maxPodsPerNode {
		return size{}, fmt.Errorf("size %q: at most %d nodes with %d pods each", text, maxNodes, maxPodsPerNode)
	}
	return size{n[0], n[1], n[2]}, nil
}

func mainErr(args []string, out io.Writer) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	w, err := newWorld(ctx, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close(o.keepLog)) }()
	var table []figure
	for i, s := range o.sizes {
		more, err := w.measure(ctx, s, o, i == 0)
		table = append(table, more...)
		if err != nil {
			return errors.Join(err, write(out, o.json, table))
		}
	}
	return write(out, o.json, append(table, flatness(table)...))
}

// measure grows the world to a size and takes every figure there.
func (w *world) measure(ctx context.Context, s size, o options, first bool) ([]figure, error) {
	f := &figures{world: w, size: s, options: o}
	for _, step := range []func(context.Context) error{
		func(ctx context.Context) error { return w.grow(ctx, s, first) },
		f.converge, f.rest, f.verdicts, f.onePod, f.verdictsUnderLoad, f.manyAtOnce, f.memory,
	} {
		if err := step(ctx); err != nil {
			return f.table, fmt.Errorf("%s: %w", s, err)
		}
	}
	return f.table, nil
}

// flatness compares the cost of one pod's change at the largest size with that at the smallest.
func flatness(table []figure) []figure {
	var of []figure
	for _, f := range table {
		if f.What == whatOnePod {
			of = append(of, f)
		}
	}
	if len(of) < 2 || of[0].Value == 0 {
		return nil
	}
	first, last := of[0], of[len(of)-1]
	return []figure{promise(first.Size+" to "+last.Size, "processor time of one pod's change, largest size to smallest",
		last.Value/first.Value, "x", 1.3, "")}
}

func promise(size, what string, value float64, unit string, atMost float64, detail string) figure {
	return figure{Size: size, What: what, Value: value, Unit: unit, AtMost: atMost, Missed: atMost > 0 && value > atMost, Detail: detail}
}

func write(out io.Writer, file string, table []figure) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "nodes/pods/policies\twhat\tvalue\tat most\t\t")
	for _, f := range table {
		limit, verdict := "", ""
		if f.AtMost > 0 {
			limit, verdict = strconv.FormatFloat(f.AtMost, 'g', 4, 64), "ok"
		}
		if f.Missed {
			verdict = "MISSED"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%.4g %s\t%s\t%s\t%s\n", f.Size, f.What, f.Value, f.Unit, limit, verdict, f.Detail)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if file == "" {
		return nil
	}
	data, err := json.MarshalIndent(table, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o600)
}
