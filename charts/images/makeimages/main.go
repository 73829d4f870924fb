// Command makeimages makes the images of charts/keelson out of the checkout that it is run in, and pushes them. `make images` and
// `make push REGISTRY=…` run it.
//
//	go run ./charts/images/makeimages DIR             write each image to DIR/<name>, in OCI image layout
//	go run ./charts/images/makeimages DIR REGISTRY    push what is there to REGISTRY/<name>, with Docker's credentials
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/keelson-project/keelson/charts/images"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout, os.Args[1:])
	stop()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "makeimages:", err) // nobody is left to tell when this fails
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, args []string) error {
	switch {
	case len(args) == 1 && args[0] != "":
		return write(ctx, out, args[0])
	case len(args) == 2 && args[0] != "" && args[1] != "":
		return push(ctx, out, args[0], args[1])
	}
	return errors.New("give the folder to write images to, or that folder and the registry to push them to, such as registry.example.org/keelson")
}

// write makes every image for every platform.
func write(ctx context.Context, out io.Writer, dir string) (err error) {
	version, err := images.Version(".")
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "keelson-images-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	programs := map[string]map[string]string{}
	for _, p := range images.Platforms() {
		if _, err := fmt.Fprintf(out, "building for %s …\n", p); err != nil {
			return err
		}
		if programs[p.String()], err = images.Compile(ctx, ".", filepath.Join(scratch, p.Architecture), p, images.Packages()...); err != nil {
			return err
		}
	}
	for _, i := range images.All() {
		var built []images.Built
		for _, p := range images.Platforms() {
			image, err := i.Build(p, version, programs[p.String()])
			if err != nil {
				return err
			}
			built = append(built, images.Built{Platform: p, Image: image})
		}
		to := filepath.Join(dir, i.Name)
		digest, err := images.WriteLayout(to, version, built...)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "%s:%s@%s\n", to, version, digest); err != nil {
			return err
		}
	}
	return nil
}

// push pushes every image and prints it by its digest, which is what charts/keelson's values image.digest take.
func push(ctx context.Context, out io.Writer, dir, registry string) error {
	for _, i := range images.All() {
		pushed, err := images.Push(ctx, filepath.Join(dir, i.Name), registry+"/"+i.Name)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, pushed); err != nil {
			return err
		}
	}
	return nil
}
