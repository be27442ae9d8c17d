"""What a page holds, and how it becomes Markdown or HTML; figures. Knows no result of its own."""
