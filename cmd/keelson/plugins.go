package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

func addPlugins(root *cobra.Command) {
	plugins := group("plugins", "Bring SPIRE plugins to where SPIRE starts them")
	var from string
	install := &cobra.Command{
		Use:   "install DIR",
		Short: "Copy the plugins of this image into a volume and print the SHA-256 of each, for SPIRE's plugin_checksum",
		Long: "Copy every file of --from into DIR, which has to exist, and print the SHA-256 of each. An init container runs this: the image\n" +
			"needs no shell, and SPIRE, in the container that follows, starts the plugins from the shared volume. Each file is whole or not there:\n" +
			"it is written under another name and renamed.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return installPlugins(cmd.OutOrStdout(), from, args[0]) },
	}
	install.Flags().StringVar(&from, "from", "/plugins", "folder that holds the plugins, and nothing else")
	plugins.AddCommand(install)
	root.AddCommand(plugins)
}

func installPlugins(out io.Writer, from, to string) error {
	if info, err := os.Stat(to); err != nil || !info.IsDir() {
		// Making it would hide a volume that is mounted elsewhere: the copies would end with this container.
		return fmt.Errorf("plugins: %s is not a folder; mount there the volume that SPIRE's container mounts too", to)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return fmt.Errorf("plugins: %w; name the folder of the plugins with --from", err)
	}
	if len(entries) == 0 {
		return fmt.Errorf("plugins: %s is empty; name the folder of the plugins with --from", from)
	}
	for _, e := range entries {
		if e.Type() != 0 {
			return fmt.Errorf("plugins: %s is no regular file; nothing but plugins belongs there", filepath.Join(from, e.Name()))
		}
	}
	for _, e := range entries {
		sum, err := installPlugin(filepath.Join(from, e.Name()), to)
		if err != nil {
			return fmt.Errorf("plugins: %w", err)
		}
		if _, err := fmt.Fprintf(out, "%s  %s\n", sum, filepath.Join(to, e.Name())); err != nil {
			return fmt.Errorf("plugins: %w", err)
		}
	}
	return nil
}

// installPlugin copies one file into a folder and returns the SHA-256 of what it wrote.
func installPlugin(path, to string) (sum string, err error) {
	source, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	target, err := os.CreateTemp(to, ".install-*")
	if err != nil {
		return "", err
	}
	// Gone once it is renamed.
	defer func() {
		if removed := os.Remove(target.Name()); !errors.Is(removed, fs.ErrNotExist) {
			err = errors.Join(err, removed)
		}
	}()
	hash := sha256.New()
	_, err = io.Copy(io.MultiWriter(target, hash), source)
	// Executable by whatever user SPIRE runs as, and written by nobody but its owner.
	if err = errors.Join(err, target.Chmod(0o755), target.Sync(), target.Close()); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), os.Rename(target.Name(), filepath.Join(to, filepath.Base(path)))
}
