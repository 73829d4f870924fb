// Command parts builds the third-party servers that the tests and the demo use, ahead of time, and tells where they are.
//
//	go run ./test/parts/cmd/parts list
//	go run ./test/parts/cmd/parts build [name …]
//	go run ./test/parts/cmd/parts system [name …]
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/keelson-project/keelson/test/parts"
)

const usage = `usage: parts list             name, version and package of every part
       parts build [name …]   find or build parts (all of them when none is named); prints name and path
       parts system [name …]  find or install what comes from Debian packages; prints name and path
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		_, _ = io.WriteString(stderr, usage)
		return 2
	}
	var err error
	switch args[0] {
	case "list":
		for _, p := range parts.List() {
			_, _ = fmt.Fprintf(stdout, "%-24s %-8s %s\n", p.Name, p.Version, p.Package)
		}
	case "build":
		err = each(stdout, args[1:], partNames(), func(name string) (map[string]string, error) {
			return parts.Ensure(ctx, stderr, name)
		})
	case "system":
		err = each(stdout, args[1:], systemNames(), func(name string) (map[string]string, error) {
			return parts.EnsureSystem(ctx, stderr, name)
		})
	default:
		_, _ = io.WriteString(stderr, usage)
		return 2
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

func each(stdout io.Writer, names, all []string, ensure func(string) (map[string]string, error)) error {
	if len(names) == 0 {
		names = all
	}
	for _, name := range names {
		paths, err := ensure(name)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(stdout, "%s %s\n", name, paths[name])
	}
	return nil
}

func partNames() []string {
	var names []string
	for _, p := range parts.List() {
		names = append(names, p.Name)
	}
	return names
}

func systemNames() []string {
	var names []string
	for _, s := range parts.Systems() {
		names = append(names, s.Name)
	}
	return names
}
